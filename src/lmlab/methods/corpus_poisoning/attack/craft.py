"""Crafting a set of passages: clusters once, then one job a cluster, each with its own file, so that a run that was
cut off goes on and the number of workers changes nothing.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from lmlab.config import influences
from lmlab.distributed import fan_out
from lmlab.errors import Interrupted, UserError
from lmlab.files import read_mapping, sha256_json, write_json, write_text
from lmlab.methods.corpus_poisoning.attack.adaptive import GateKnown, gate_digest, open_known_gate
from lmlab.methods.corpus_poisoning.attack.clusters import Clusters, cluster_queries, cover_queries
from lmlab.methods.corpus_poisoning.attack.crafted import (
    ATTACKERS,
    AdversarialSet,
    Passage,
    query_digests,
)
from lmlab.methods.corpus_poisoning.attack.late import check_late, late_objective
from lmlab.methods.corpus_poisoning.attack.layout import as_read, layout_of, nearest_first, payload_of, start_ids
from lmlab.methods.corpus_poisoning.attack.passage import craft_passage, objective_of, seed_of
from lmlab.methods.corpus_poisoning.attack.searching.decode import continuations, language_model
from lmlab.methods.corpus_poisoning.attack.searching.objective import Objective
from lmlab.methods.corpus_poisoning.attack.searching.problem import check_length
from lmlab.methods.corpus_poisoning.attack.searching.together import Network, run_together
from lmlab.methods.corpus_poisoning.attack.vocabulary import spell
from lmlab.methods.corpus_poisoning.config import CraftConfig
from lmlab.progress import console, progress
from lmlab.retrieval import AnyEncoder, LateEncoder, load_encoder, load_late_encoder
from lmlab.retrieval.encoders.directory import is_late
from lmlab.words import counted

_CONTINUED = 4  # of a cluster's queries, for the start lm: one continuation may end early
_VERSION = 3  # of crafting: raise it when the same settings give other clusters or passages, so that none is taken up


@dataclass(frozen=True)
class EncoderSpec:
    """What `load_encoder` was given, so that workers load the same."""

    place: str
    options: dict[str, Any] = field(default_factory=dict)

    def load(self) -> AnyEncoder:
        """The encoder.

        Raises:
            UserError: it is one of late interaction, which has no one vector for a text.
        """
        return load_encoder(self.place, **self.options)

    @property
    def late(self) -> bool:
        """Whether it is one of late interaction."""
        return is_late(Path(self.place).expanduser())

    def load_late(self) -> LateEncoder:
        """The encoder, where it is one of late interaction.

        Raises:
            UserError: an option is given that means nothing to it.
        """
        if given := sorted(self.options.keys() - {"device"}):
            raise UserError(
                f"Late interaction takes its settings from the encoder's directory, not {', '.join(given)}.",
                "Leave them out.",
            )
        return load_late_encoder(self.place, self.options.get("device", "cpu"))

    def attacked(self) -> AnyEncoder:
        """The encoder as crafting asks it: for vectors and gradients of ids, which one of late interaction gives too (a
        vector for each token, which `MaxSim` takes).
        """
        return cast(AnyEncoder, self.load_late()) if self.late else self.load()


@dataclass(frozen=True)
class Craft:
    """What a run of crafting gave.

    Attributes:
        run: a digest of all that decides on it.
        perfect_kH: the clusters' centroids as if they were passages.
    """

    run: str
    passages: AdversarialSet
    clusters: Clusters
    perfect_kH: NDArray[np.float32]
    seconds: float
    evaluations: int


@dataclass(frozen=True)
class _Job:
    encoder: EncoderSpec
    config: CraftConfig
    run: str
    cluster: int
    queries_nH: NDArray[np.float32]
    texts: tuple[str, ...]
    tau_n: NDArray[np.float32] | None
    golds: tuple[str, ...] | None
    payload: str
    path: Path


def craft(
    encoder: EncoderSpec,
    texts: Sequence[str],
    vectors_nH: NDArray[np.float32],
    config: CraftConfig,
    directory: str | Path,
    tau_n: NDArray[np.float32] | None = None,
    stop: Any = None,
    golds: Sequence[str] | None = None,
) -> Craft:
    """Craft passages against a retriever of one's own.

    Arguments:
        texts: the attacker's queries, with their vectors.
        directory: receives `clusters.npz`, one file a cluster, `adversarial.jsonl`, `removal.txt` and `craft.json`.
        tau_n: for the coverage objective, what a passage must pass for each query.
        stop: asked after each passage with all so far; True ends the run (`target_asr`).
        golds: for the start gold, a document that is relevant to each query.

    Raises:
        UserError: there are fewer distinct queries than clusters, the passage is too long, or the payload does not fit.
    """
    directory = Path(directory)
    if not len(texts):
        raise UserError("There are 0 queries to attack.")
    if config.start == "gold" and golds is None:
        raise UserError("The start gold needs documents that are relevant to the queries.", "Give judgments of them.")
    if encoder.late:
        check_late(config)
    loaded = encoder.attacked()
    if config.norm_cap is not None and loaded.similarity != "dot":
        raise UserError("All vectors of this retriever have length 1: norm_cap means nothing.", "Leave it out.")
    about = {"version": _VERSION, "encoder": loaded.fingerprint, "queries": sha256_json(list(texts))[:16]}
    passed = [] if tau_n is None or config.objective == "mean" else [hashlib.sha256(tau_n.tobytes()).hexdigest()]
    if config.known_gate is not None:
        open_known_gate(config.known_gate, loaded, config.language_model)
        passed = [*passed, *gate_digest(config.known_gate)]
    if config.start == "gold" and golds is not None:
        passed = [*passed, sha256_json(list(golds))]
    if config.language_model is not None and not config.writes and config.known_gate is None:
        console.print("The language model is not asked: it is for --optimizer decode and --start lm.", markup=False)
    if config.writes:
        passed = [*passed, language_model(str(config.language_model), loaded.device)[2]]
    run = sha256_json([about, {**_named(config), "k": config.k}, *passed])[:8]
    payload = payload_of(config, run)
    check_length(loaded, config.length)
    layout_of(loaded, config, payload)  # errors before any work
    if payload and (read := as_read(loaded, payload)):
        console.print(f"The encoder does not see case; it reads the payload as '{read}'.", markup=False)
    if config.objective == "coverage" and tau_n is None:
        raise UserError("The coverage objective needs thresholds of the queries.", "Give the corpus, or judgments.")
    if config.clusters == "coverage" and loaded.similarity != "cosine":
        raise UserError(
            "Vectors of any length cover all queries of a retriever by dot product.", "Leave clusters coverage out."
        )
    clusters = _clusters(vectors_nH, config, directory, about, tau_n)
    jobs = [
        _Job(
            encoder,
            config,
            run,
            number,
            vectors_nH[clusters.labels_n == number],
            tuple(text for text, label in zip(texts, clusters.labels_n, strict=True) if label == number),
            None if tau_n is None else tau_n[clusters.labels_n == number],
            None
            if golds is None
            else tuple(text for text, label in zip(golds, clusters.labels_n, strict=True) if label == number),
            payload,
            directory / "clusters" / f"{run}-{number:05d}.json",
        )
        for number in range(len(clusters))
    ]
    done = _run(jobs, loaded, config.workers, stop)
    passages = AdversarialSet(tuple(Passage(**_tuples(each["passage"])) for each in done))
    passages.save(directory)
    write_text(directory / ATTACKERS, "".join(f"{digest}\n" for digest in query_digests(texts)))
    seconds = sum(each["cpu_seconds"] for each in done)
    evaluations = sum(passage.evaluations for passage in passages.passages)
    summary = {
        "run": run,
        "config": _named(config),
        "encoder": loaded.fingerprint,
        "queries": len(texts),
        "clusters": clusters.sizes,
        "merged_clusters": clusters.merged,
        "inertia": clusters.inertia,
        "cpu_seconds": seconds,
        "evaluations": evaluations,
        "payload": payload,
    }
    write_json(directory / "craft.json", summary)
    if clusters.merged:
        console.print(f"{counted(clusters.merged, 'clusters')} of fewer than 2 queries joined the nearest.")
    return Craft(run, passages, clusters, clusters.perfect_kH, seconds, evaluations)


def _named(config: CraftConfig) -> dict[str, Any]:
    """The settings that decide on passages. A gate and a language model are told by their contents, not by where they
    are.
    """
    found = influences(config)
    gate, model = found.pop("known_gate", None), found.pop("language_model", None)
    weight, bound = found.pop("gate_weight", None), found.pop("surprise", None)
    for name in ("concept", "query_id", "each_query", "norm_cap"):
        if not found[name]:
            found.pop(name)
    if config.together == 1:
        found.pop("together")
    if config.clusters == "means":
        found.pop("clusters")
    if config.known_gate is not None:
        found |= {"known_gate": Path(gate).name, "gate_weight": weight}
    return {**found, "language_model": Path(str(model)).name, "surprise": bound} if config.writes else found


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "token_ids": tuple(row["token_ids"])}


def _clusters(
    vectors: NDArray[np.float32],
    config: CraftConfig,
    directory: Path,
    about: dict[str, Any],
    tau_n: NDArray[np.float32] | None,
) -> Clusters:
    path = directory / "clusters.npz"
    about = {**about, "k": config.k, "seed": config.seed, "spherical": config.spherical}
    if config.each_query:
        about = {**about, "k": len(vectors), "each_query": True}
    if config.clusters == "coverage" and tau_n is not None:
        about = {**about, "covering": hashlib.sha256(tau_n.tobytes()).hexdigest()[:16]}
    if path.exists():
        return Clusters.load(path, about)
    if config.each_query:
        found = Clusters(np.arange(len(vectors)), np.asarray(vectors, np.float32), 0.0, 0, about)
        found.save(path)
        return found
    found = cluster_queries(vectors, config.k, config.seed, config.spherical, about)
    if config.clusters == "coverage" and tau_n is not None:
        found = cover_queries(found, vectors, tau_n, config.seed)
    found.save(path)
    return found


def _run(jobs: list[_Job], encoder: AnyEncoder, workers: int, stop: Any) -> list[dict[str, Any]]:
    """Run what is not there; in the order of clusters, the largest first. With `stop`, what is taken is the shortest
    row of first clusters that satisfies it, whatever else workers or an earlier run have made.
    """
    found = {job.cluster: read_mapping(job.path) for job in jobs if job.path.exists()}
    asked = _Stop(stop)
    if workers > 1:
        waiting = [job for job in jobs if job.cluster not in found]
        with progress("craft", len(jobs), "passages", start=len(found)) as advance:
            if not asked(found):
                for number, row in fan_out(_craft_one, waiting, workers):
                    found[waiting[number].cluster] = row
                    advance(1)
                    if asked(found):
                        break
    elif jobs and jobs[0].config.together > 1:
        _together(jobs, encoder, found, asked)
    else:
        _one_by_one(jobs, encoder, found, asked)
    return [found[number] for number in sorted(found)[: asked.enough]]


class _Stop:
    """Whether the first clusters' passages are enough, asked for one more at a time, in their order.

    Attributes:
        enough: how many passages were; None for all.
    """

    def __init__(self, stop: Any) -> None:
        self._stop, self._asked = stop, 0
        self.enough: int | None = None

    def __call__(self, found: dict[int, dict[str, Any]]) -> bool:
        while self._stop is not None and self.enough is None and self._asked in found:
            self._asked += 1
            if self._stop([found[number]["passage"]["text"] for number in range(self._asked)]):
                self.enough = self._asked
        return self.enough is not None


def _one_by_one(jobs: list[_Job], encoder: AnyEncoder, found: dict[int, dict[str, Any]], asked: _Stop) -> None:
    """A passage takes minutes: what is shown is what its budget counts."""
    sizes = {job.cluster: job.config.budget for job in jobs}
    with progress("craft", sum(sizes.values()), "forwards", start=sum(sizes[each] for each in found)) as advance:
        for job in jobs:
            if asked(found):
                break
            if job.cluster not in found:
                note, spent = f"passage {len(found) + 1} of {len(jobs)}", 0

                def told(forwards: int, note: str = note) -> None:
                    nonlocal spent
                    spent += forwards
                    advance(forwards, note)

                try:
                    found[job.cluster] = _craft_one(job, encoder, told)
                except KeyboardInterrupt:
                    raise _interrupted(found, jobs) from None
                advance(max(0, job.config.budget - spent), note)  # it may end before its budget does
        asked(found)


def _together(jobs: list[_Job], encoder: AnyEncoder, found: dict[int, dict[str, Any]], asked: _Stop) -> None:
    """So many passages at once, then the next ones. Of those at once all are made again where one is missing: what
    stands in one batch decides on last digits, and a run that was cut off is to give what a whole one gives.
    """
    size, lock = jobs[0].config.together, threading.Lock()
    groups = [jobs[first : first + size] for first in range(0, len(jobs), size)]
    waiting = [some for some in groups if any(job.cluster not in found for job in some)]
    with progress("craft", len(jobs) * jobs[0].config.budget, "forwards") as advance:
        advance((len(jobs) - sum(map(len, waiting))) * jobs[0].config.budget)

        def told(forwards: int) -> None:
            with lock:
                advance(forwards)

        for some in waiting:
            if asked(found):
                break

            def done(number: int, row: dict[str, Any], some: list[_Job] = some) -> None:
                found[some[number].cluster] = row

            try:
                run_together(encoder, [partial(_craft_one, job, encoder, told) for job in some], done)
            except KeyboardInterrupt:
                raise _interrupted(found, jobs) from None
        asked(found)


def _interrupted(found: dict[int, dict[str, Any]], jobs: list[_Job]) -> Interrupted:
    return Interrupted(
        f"Stopped after {len(found)} of {counted(len(jobs), 'passages')}.", "Run the same command: it goes on."
    )


def _start(job: _Job, encoder: AnyEncoder) -> NDArray[np.int64]:
    if job.config.optimizer == "decode":  # it starts from nothing
        return np.zeros(job.config.length, np.int64)
    if job.config.start == "lm":
        first = nearest_first(job.queries_nH)[:_CONTINUED]
        seed = seed_of(job.config.seed, job.cluster)
        asked = [job.texts[row] for row in first]
        texts = continuations(str(job.config.language_model), encoder.device, asked, job.config.length, seed)
        return start_ids(job.config, encoder, texts, job.queries_nH[first])
    texts = list(job.golds) if job.config.start == "gold" and job.golds is not None else list(job.texts)
    return start_ids(job.config, encoder, texts, job.queries_nH)


def _objective(job: _Job, encoder: AnyEncoder) -> Objective:
    if isinstance(encoder, LateEncoder):
        return late_objective(encoder, job.texts, seed_of(job.config.seed, job.cluster))
    queries = torch.from_numpy(job.queries_nH).to(encoder.device)
    return objective_of(job.config, queries, job.tau_n, encoder.similarity == "cosine")


def _penalty(config: CraftConfig, encoder: AnyEncoder) -> GateKnown | None:
    if config.known_gate is None:
        return None
    gate = open_known_gate(config.known_gate, encoder, config.language_model)
    return GateKnown(gate, lambda ids: spell(encoder.tokenizer, ids), config.gate_weight)


def _craft_one(
    job: _Job,
    encoder: AnyEncoder | None = None,
    told: Callable[[int], None] | None = None,
    network: Network | None = None,
) -> dict[str, Any]:
    """One passage, written to its file."""
    if encoder is None:
        torch.set_num_threads(1)  # two processes of one thread do more than one of two
        encoder = job.encoder.attacked()
    clock = time.process_time if network is None else time.thread_time  # of several in one process each its own
    started = clock()
    passage = craft_passage(
        encoder,
        _objective(job, encoder),
        _start(job, encoder),
        job.config,
        job.run,
        str(job.cluster),
        job.payload,
        seed=seed_of(job.config.seed, job.cluster),
        penalty=_penalty(job.config, encoder),
        told=told,
        network=network,
    )
    row = {"passage": asdict(passage), "cpu_seconds": clock() - started}
    write_json(job.path, row)
    return row
