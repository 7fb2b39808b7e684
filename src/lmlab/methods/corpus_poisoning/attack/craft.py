"""Crafting a set of passages: clusters once, then one job a cluster, each with its own file, so that a run that was
cut off goes on and the number of workers changes nothing.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmlab.config import influences
from lmlab.distributed import fan_out
from lmlab.errors import Interrupted, UserError
from lmlab.files import read_mapping, sha256_json, write_json, write_text
from lmlab.methods.corpus_poisoning.attack.clusters import Clusters, cluster_queries
from lmlab.methods.corpus_poisoning.attack.crafted import (
    ATTACKERS,
    AdversarialSet,
    Passage,
    passage_id,
    query_digests,
)
from lmlab.methods.corpus_poisoning.attack.objective import Coverage, MeanSimilarity, Objective
from lmlab.methods.corpus_poisoning.attack.optimizers import Found, optimize
from lmlab.methods.corpus_poisoning.attack.problem import Budget, NotFiniteError, Penalty, Problem, check_length
from lmlab.methods.corpus_poisoning.attack.vocabulary import allowed_ids, reads_back, spell
from lmlab.methods.corpus_poisoning.config import CraftConfig
from lmlab.progress import console, progress
from lmlab.retrieval import AnyEncoder, load_encoder
from lmlab.retrieval.collections.records import document_text

CANARY = "REDTEAM-CANARY-{run}"
_SHARE_HELD_BACK = 0.1


@dataclass(frozen=True)
class EncoderSpec:
    """What `load_encoder` was given, so that workers load the same."""

    place: str
    options: dict[str, Any] = field(default_factory=dict)

    def load(self) -> AnyEncoder:
        """The encoder."""
        return load_encoder(self.place, **self.options)


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
) -> Craft:
    """Craft passages against a retriever of one's own.

    Arguments:
        texts: the attacker's queries, with their vectors.
        directory: receives `clusters.npz`, one file a cluster, `adversarial.jsonl`, `removal.txt` and `craft.json`.
        tau_n: for the coverage objective, what a passage must pass for each query.
        stop: asked after each passage with all so far; True ends the run (`target_asr`).

    Raises:
        UserError: there are fewer distinct queries than clusters, the passage is too long, or the payload does not fit.
    """
    directory = Path(directory)
    if not len(texts):
        raise UserError("There are 0 queries to attack.")
    loaded = encoder.load()
    about = {"encoder": loaded.fingerprint, "queries": sha256_json(list(texts))[:16]}
    passed = [] if tau_n is None or config.objective == "mean" else [hashlib.sha256(tau_n.tobytes()).hexdigest()]
    run = sha256_json([about, {**influences(config), "k": config.k}, *passed])[:8]
    payload = _payload(config, run)
    check_length(loaded, config.length)
    _layout(loaded, config, payload)  # errors before any work
    if config.objective == "coverage" and tau_n is None:
        raise UserError("The coverage objective needs thresholds of the queries.", "Give the corpus, or judgments.")
    clusters = _clusters(vectors_nH, config, directory, about)
    jobs = [
        _Job(
            encoder,
            config,
            run,
            number,
            vectors_nH[clusters.labels_n == number],
            tuple(text for text, label in zip(texts, clusters.labels_n, strict=True) if label == number),
            None if tau_n is None else tau_n[clusters.labels_n == number],
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
        "config": influences(config),
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
        console.print(f"{clusters.merged} clusters of fewer than 2 queries joined their nearest.")
    return Craft(run, passages, clusters, clusters.perfect_kH, seconds, evaluations)


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "token_ids": tuple(row["token_ids"])}


def _clusters(vectors: NDArray[np.float32], config: CraftConfig, directory: Path, about: dict[str, Any]) -> Clusters:
    path = directory / "clusters.npz"
    about = {**about, "k": config.k, "seed": config.seed, "spherical": config.spherical}
    if path.exists():
        return Clusters.load(path, about)
    found = cluster_queries(vectors, config.k, config.seed, config.spherical, about)
    found.save(path)
    return found


def _run(jobs: list[_Job], encoder: AnyEncoder, workers: int, stop: Any) -> list[dict[str, Any]]:
    """Run what is not there; in the order of clusters, the largest first."""
    found = {job.cluster: read_mapping(job.path) for job in jobs if job.path.exists()}
    waiting = [job for job in jobs if job.cluster not in found]
    with progress("craft", len(jobs), "passages") as advance:
        advance(len(found))
        if workers > 1 and stop is None:
            for number, row in fan_out(_craft_one, waiting, workers):
                found[waiting[number].cluster] = row
                advance(1)
        else:
            for job in jobs:
                if job.cluster not in found:
                    try:
                        found[job.cluster] = _craft_one(job, encoder)
                    except KeyboardInterrupt:
                        raise Interrupted(
                            f"Stopped after {len(found)} of {len(jobs)} passages.", "Run the same command: it goes on."
                        ) from None
                    advance(1)
                if stop is not None and stop([found[number]["passage"]["text"] for number in sorted(found)]):
                    break
    return [found[number] for number in sorted(found)]


def _craft_one(job: _Job, encoder: AnyEncoder | None = None) -> dict[str, Any]:
    """One passage, written to its file."""
    if encoder is None:
        torch.set_num_threads(1)  # two processes of one thread do more than one of two
        encoder = job.encoder.load()
    started = time.process_time()
    passage = craft_passage(
        encoder,
        objective_of(job.config, torch.from_numpy(job.queries_nH), job.tau_n, encoder.similarity == "cosine"),
        start_ids(job.config, encoder, job.texts, job.queries_nH),
        job.config,
        job.run,
        str(job.cluster),
        job.payload,
        seed=seed_of(job.config.seed, job.cluster),
    )
    row = {"passage": asdict(passage), "cpu_seconds": time.process_time() - started}
    write_json(job.path, row)
    return row


def seed_of(seed: int, cluster: int) -> int:
    """A seed of its own for each cluster."""
    return int(np.random.SeedSequence([seed, cluster]).generate_state(1)[0])


def objective_of(
    config: CraftConfig, queries_nH: torch.Tensor, tau_n: NDArray[np.float32] | None, unit: bool
) -> Objective:
    """The objective of a cluster."""
    if config.objective == "coverage":
        assert tau_n is not None
        return Coverage(queries_nH, torch.from_numpy(tau_n))
    return MeanSimilarity.of(queries_nH, unit)


def craft_passage(
    encoder: AnyEncoder,
    objective: Objective,
    free_ids: NDArray[np.int64],
    config: CraftConfig,
    run: str,
    cluster: str,
    payload: str = "",
    seed: int = 0,
    penalty: Penalty | None = None,
    number: int = 0,
    stop: Any = None,
) -> Passage:
    """Optimize one passage and make sure that its text becomes its ids again.

    Arguments:
        free_ids: where free positions start.
    """
    fixed, free = _layout(encoder, config, payload)
    allowed = allowed_ids(encoder.tokenizer, config.words)
    ids = fixed.copy()
    ids[free] = free_ids[: int(free.sum())]
    note = ""
    problem = Problem(encoder, objective, allowed, free, Budget(config.budget), config.precision, penalty)
    try:
        found = optimize(problem, ids, config.optimizer, config.candidates, seed, stop)
    except NotFiniteError as error:
        note = f"{error.message} Tried again in fp32."
        problem.precision = "fp32"
        try:
            found = optimize(problem, ids, config.optimizer, config.candidates, seed, stop)
        except NotFiniteError:
            note = f"{error.message} Not finite in fp32 either: the start is kept."
            found = Found(ids, float("nan"), "not finite")
    text, final, repaired = _as_text(problem, found, payload, free, config)
    return Passage(
        passage_id(run, cluster, number),
        text,
        run,
        config.optimizer,
        str(encoder.fingerprint["model"]),
        cluster,
        tuple(int(id) for id in final.ids_L),
        _finite(found.value),
        _finite(final.value),
        problem.budget.spent,
        config.seed,
        payload,
        found.stopped,
        " ".join(each for each in (note, repaired) if each),
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _as_text(
    problem: Problem, found: Found, payload: str, free: NDArray[np.bool_], config: CraftConfig
) -> tuple[str, Found, str]:
    """The text, its ids as an indexer reads them, and their objective. Ids that do not survive (pieces of words from
    the start) are replaced by what the text becomes, and optimized once more from there.
    """
    tokenizer = problem.encoder.tokenizer
    text = _text(problem, found.ids_L, payload, free, config)
    if reads_back(tokenizer, found.ids_L, document_text("", text)):
        return text, found, ""
    best: tuple[str, Found] | None = None
    current, budget = found, problem.budget
    for _ in range(3):
        ids = np.array(tokenizer.inner([document_text("", _text(problem, current.ids_L, payload, free, config))])[0])
        ids = _fitted(ids, current.ids_L, free, problem.allowed_V)
        again = _only_allowed(ids, free, problem.allowed_V)
        problem.budget = Budget(max(config.budget // 4, 2 * config.candidates))
        current = optimize(problem, again, config.optimizer, config.candidates, config.seed)
        budget.spent += problem.budget.spent
        text = _text(problem, current.ids_L, payload, free, config)
        if reads_back(tokenizer, current.ids_L, document_text("", text)):
            best = (text, current)
            break
    problem.budget = budget
    if best is None:
        ids = np.array(tokenizer.inner([document_text("", text)])[0], np.int64)
        return (
            text,
            Found(ids, _value_of(problem, ids), current.stopped),
            "Its text becomes other ids than those chosen.",
        )
    return best[0], best[1], "Pieces of words were replaced after the first pass."


def _value_of(problem: Problem, ids: NDArray[np.int64]) -> float:
    rows = torch.tensor([problem.encoder.wrap(ids.tolist())], device=problem.encoder.device)
    with torch.inference_mode():
        return float(problem.objective(problem.encoder.encode_ids(rows))[0])


def _fitted(
    ids: NDArray[np.int64], before: NDArray[np.int64], free: NDArray[np.bool_], allowed: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Ids of another length cut or filled to the passage's, payload in its place."""
    fitted = before.copy()
    payload_first = not free[0]
    inner = ids[(~free).sum() :] if payload_first else ids[: max(0, len(ids) - (~free).sum())]
    count = int(free.sum())
    values = np.full(count, allowed[0])
    values[: min(count, len(inner))] = inner[:count]
    fitted[free] = values
    return fitted


def _only_allowed(ids: NDArray[np.int64], free: NDArray[np.bool_], allowed: NDArray[np.int64]) -> NDArray[np.int64]:
    """What may not stand at a free position is replaced by an allowed neighbor, for the optimizer to change."""
    found = ids.copy()
    odd = free & ~np.isin(ids, allowed)
    found[odd] = allowed[np.searchsorted(allowed, ids[odd]) % len(allowed)]
    return found


def _text(problem: Problem, ids: NDArray[np.int64], payload: str, free: NDArray[np.bool_], config: CraftConfig) -> str:
    inner = spell(problem.encoder.tokenizer, ids[free].tolist())
    if config.payload_position == "none":
        return inner.strip()
    parts = [payload, inner.strip()] if config.payload_position == "prefix" else [inner.strip(), payload]
    return " ".join(parts)


def _payload(config: CraftConfig, run: str) -> str:
    if config.payload_position == "none":
        return ""
    return config.payload or CANARY.format(run=run)


def _layout(encoder: AnyEncoder, config: CraftConfig, payload: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The ids of a passage with its payload in place, and which positions are free.

    Raises:
        UserError: the payload has unknown tokens, or leaves no room.
    """
    tokenizer = encoder.tokenizer
    fixed = tokenizer.inner([payload])[0] if payload else []
    unknown = tokenizer.backend.token_to_id(tokenizer.special.get("unk_token", "")) if payload else None
    if payload and (not fixed or (unknown is not None and unknown in fixed)):
        raise UserError("The payload holds what the encoder's vocabulary cannot spell.", "Use other words.")
    if payload:
        back = _folded(spell(tokenizer, fixed))
        if back != _folded(payload):
            raise UserError(f"The payload is read by the encoder as '{back:.100}'.", "Use plain words.")
    if len(fixed) >= config.length:
        around = len(encoder.wrap([]))
        raise UserError(
            f"The payload has {len(fixed)} tokens, and with {around} around it leaves no room in a passage of"
            f" {config.length} tokens.",
            "Raise --length, or shorten the payload.",
        )
    free = np.ones(config.length, bool)
    ids = np.zeros(config.length, np.int64)
    if fixed:
        place = slice(0, len(fixed)) if config.payload_position == "prefix" else slice(-len(fixed), None)
        ids[place], free[place] = fixed, False
    return ids, free


def _folded(text: str) -> str:
    """A text without case and spaces, as uncased encoders see it."""
    return re.sub(r"\s+", "", text.casefold())


def start_ids(
    config: CraftConfig, encoder: AnyEncoder, texts: Sequence[str], vectors_nH: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Where the optimization starts, [length]: the queries nearest to their mean one after another (stuffing), mask
    tokens, or random words.

    Raises:
        UserError: the encoder has no mask token.
    """
    length, tokenizer = config.length, encoder.tokenizer
    if config.start == "mask":
        if tokenizer.mask_id is None:
            raise UserError("The encoder has no mask token to start from.", "Use --start queries.")
        return np.full(length, tokenizer.mask_id, np.int64)
    if config.start == "random":
        generator = np.random.default_rng(config.seed)
        return generator.choice(allowed_ids(tokenizer, config.words), length)
    mean = vectors_nH.astype(np.float64).mean(0)
    found: list[int] = []
    for row in np.argsort(-(vectors_nH @ mean), kind="stable"):
        found += tokenizer.inner([texts[int(row)]])[0]
        if len(found) >= length:
            break
    filler = tokenizer.inner(["."])[0][:1] or [int(allowed_ids(tokenizer)[0])]
    return np.array((found + filler * length)[:length], np.int64)
