"""One passage: optimized, and made sure that its text becomes its ids again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmlab.methods.corpus_poisoning.attack.crafted import Passage, passage_id
from lmlab.methods.corpus_poisoning.attack.layout import layout_of, with_payload
from lmlab.methods.corpus_poisoning.attack.searching.decode import fluent_search
from lmlab.methods.corpus_poisoning.attack.searching.objective import (
    Coverage,
    MeanSimilarity,
    NormCapped,
    Objective,
)
from lmlab.methods.corpus_poisoning.attack.searching.optimizers import Found, OptimizerName, optimize
from lmlab.methods.corpus_poisoning.attack.searching.problem import Budget, NotFiniteError, Penalty, Problem
from lmlab.methods.corpus_poisoning.attack.searching.together import Network
from lmlab.methods.corpus_poisoning.attack.vocabulary import allowed_ids, reads_back, spell
from lmlab.methods.corpus_poisoning.config import CraftConfig
from lmlab.retrieval import AnyEncoder
from lmlab.retrieval.collections.records import document_text

_REPAIR_SHARE = 4  # a quarter of the budget
_REPAIRS = 3  # what replaces a piece may join its neighbors anew; a text that still does not read back is told


def seed_of(seed: int, cluster: int) -> int:
    """A seed of its own for each cluster."""
    return int(np.random.SeedSequence([seed, cluster]).generate_state(1)[0])


def objective_of(
    config: CraftConfig, queries_nH: torch.Tensor, tau_n: NDArray[np.float32] | None, unit: bool
) -> Objective:
    """The objective of a cluster."""
    found: Objective
    if config.objective == "coverage":
        assert tau_n is not None
        found = Coverage(queries_nH, torch.from_numpy(tau_n))
    else:
        found = MeanSimilarity.of(queries_nH, unit)
    return found if config.norm_cap is None else NormCapped(found, config.norm_cap)


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
    told: Callable[[int], None] | None = None,
    network: Network | None = None,
) -> Passage:
    """Optimize one passage and make sure that its text becomes its ids again.

    Arguments:
        free_ids: where free positions start.
        network: what is asked for vectors and gradients, where several passages share one.
        told: is called with the numbers of passage forwards as they are spent.
    """
    if config.optimizer == "decode":
        return _decoded(encoder, objective, config, run, cluster, payload, number, penalty, told)
    fixed, free = layout_of(encoder, config, payload)
    allowed = allowed_ids(encoder.tokenizer, config.words)
    ids = fixed.copy()
    ids[free] = free_ids[: int(free.sum())]
    note = ""
    # a start that is no text (mask tokens) may leave ids that no text has, whose repair is to be paid too
    kept_back = 0 if reads_back(encoder.tokenizer, ids) else config.budget // _REPAIR_SHARE
    budget = Budget(config.budget - kept_back, told=told)
    problem = Problem(encoder, objective, allowed, free, budget, config.precision, penalty, network=network)
    try:
        found = optimize(problem, ids, _by_ids(config), config.candidates, seed, stop)
    except NotFiniteError as error:
        note = f"{error.message} Tried again in fp32."
        problem.precision = "fp32"
        try:
            found = optimize(problem, ids, _by_ids(config), config.candidates, seed, stop)
        except NotFiniteError:
            note = f"{error.message} Not finite in fp32 either: the start is kept."
            found = Found(ids, float("nan"), "not finite")
    budget.limit = config.budget
    text, final, repaired = _as_text(problem, found, payload, free, config)
    long = _too_long(problem, final.ids_L, config.norm_cap)
    return Passage(
        passage_id(run, cluster, number),
        text,
        run,
        config.optimizer,
        str(encoder.fingerprint["model"]),
        cluster,
        tuple(int(id) for id in final.ids_L),
        _finite(_value_of(problem, final.ids_L)),
        _finite(_value_of_text(problem, text)),
        problem.budget.spent,
        config.seed,
        payload,
        found.stopped,
        " ".join(each for each in (note, repaired, long) if each),
    )


def _by_ids(config: CraftConfig) -> OptimizerName:
    assert config.optimizer != "decode"
    return config.optimizer


def _decoded(
    encoder: AnyEncoder,
    objective: Objective,
    config: CraftConfig,
    run: str,
    cluster: str,
    payload: str,
    number: int,
    penalty: Penalty | None,
    told: Callable[[int], None] | None,
) -> Passage:
    """A passage by the language model: its text comes first, and its ids are what the text becomes."""
    search = fluent_search(str(config.language_model), encoder, config.surprise)
    budget = Budget(config.budget, told=told)
    found = search.run(
        objective,
        lambda text: with_payload(text, payload, config),
        config.length,
        budget,
        config.precision,
        penalty,
    )
    return Passage(
        passage_id(run, cluster, number),
        found.text,
        run,
        config.optimizer,
        str(encoder.fingerprint["model"]),
        cluster,
        tuple(encoder.tokenizer.inner([found.text])[0]),
        _finite(found.value),
        _finite(found.value),
        budget.spent,
        config.seed,
        payload,
        "length" if budget.left else "budget",
        f"{found.surprise:.2f} nats a token of the language model.",
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _as_text(
    problem: Problem, found: Found, payload: str, free: NDArray[np.bool_], config: CraftConfig
) -> tuple[str, Found, str]:
    """The text, its ids as an indexer reads them, and their objective. Ids that do not survive (pieces of words from
    the start) are replaced by what the text becomes, and optimized once more from there, with what the budget has left.
    """
    tokenizer = problem.encoder.tokenizer
    text = _text(problem, found.ids_L, payload, free, config)
    if reads_back(tokenizer, found.ids_L, document_text("", text)):
        return text, found, ""
    best: tuple[str, Found] | None = None
    current, tries = found, 0
    while problem.budget.left and tries < _REPAIRS:
        tries += 1
        ids = np.array(tokenizer.inner([document_text("", _text(problem, current.ids_L, payload, free, config))])[0])
        ids = _fitted(ids, current.ids_L, free, problem.allowed_V)
        again = _only_allowed(ids, free, problem.allowed_V)
        current = optimize(problem, again, _by_ids(config), config.candidates, config.seed)
        text = _text(problem, current.ids_L, payload, free, config)
        if reads_back(tokenizer, current.ids_L, document_text("", text)):
            best = (text, current)
            break
    if best is None:
        ids = np.array(tokenizer.inner([document_text("", text)])[0], np.int64)
        return (
            text,
            Found(ids, _value_of(problem, ids), current.stopped),
            "Its text becomes other ids than those chosen.",
        )
    return best[0], best[1], "Pieces of words were replaced after the first pass."


def _value_of_text(problem: Problem, text: str) -> float:
    """The objective of a text by the path that documents take."""
    found = problem.encoder.encode_text([document_text("", text)])  # of late interaction one matrix for each text
    with torch.inference_mode():
        return float(problem.objective(torch.from_numpy(np.asarray(found[0])[None]).to(problem.encoder.device))[0])


def _too_long(problem: Problem, ids: NDArray[np.int64], cap: float | None) -> str:
    if cap is None:
        return ""
    length = float(np.linalg.norm(problem.vectors(ids[None])[0]))
    return f"Its vector is {length:.3f} long, above the cap of {cap:g}." if length > cap else ""


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
    return with_payload(spell(problem.encoder.tokenizer, ids[free].tolist()), payload, config)
