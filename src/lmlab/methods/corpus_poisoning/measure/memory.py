"""An agent's memory with one entry that an attacker got in, which a trigger in the agent's question is to bring up
(AgentPoison, arXiv 2407.12784; MINJA, arXiv 2503.03704): how often it does, with and without a check of where entries
come from, and what that check costs.

A collection stands for the memory: its documents are entries, its questions are what the agent asks, its judgments say
which entries help. Some share of the honest entries is from sources that nobody has verified, as the attacker's is.

Shapes: N entries, Q questions, H width of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.methods.corpus_poisoning.attack.crafted import query_digests
from lmlab.methods.corpus_poisoning.attack.layout import start_ids
from lmlab.methods.corpus_poisoning.attack.passage import craft_passage
from lmlab.methods.corpus_poisoning.attack.searching.objective import MeanSimilarity
from lmlab.methods.corpus_poisoning.config import CraftConfig, MemoryConfig
from lmlab.methods.corpus_poisoning.measure.evaluate import passage_scores
from lmlab.methods.corpus_poisoning.measure.run import held_out
from lmlab.methods.corpus_poisoning.setup import Target
from lmlab.retrieval import ExactIndex
from lmlab.words import counted

_CHUNK = 2048  # entries at once: more take memory for their similarities


@dataclass(frozen=True)
class MemoryRow:
    """One poisoned entry, and one rule of which entries are read.

    Attributes:
        poison: the trigger itself as an entry, or one that is optimized towards triggered questions.
        rule: all entries; those of verified sources; or those that are verified or corroborated.
        triggered, others: share of questions with and without the trigger of which the entry is among the first k.
        recall: share of the helpful entries among the first k of questions without the trigger.
        kept: share of the honest entries that the rule lets be read.
    """

    poison: str
    rule: str
    entries: int
    questions: int
    k: int
    triggered: float
    others: float
    recall: float
    kept: float

    def row(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def nearest_verified(vectors_NH: NDArray[np.float32], verified_N: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The cosine of each entry with the nearest verified entry other than itself, [N]."""
    unit = vectors_NH / np.maximum(np.linalg.norm(vectors_NH, axis=1, keepdims=True), 1e-12)
    sure = np.flatnonzero(verified_N)
    found = np.full(len(unit), -1.0, np.float32)
    for start in range(0, len(unit), _CHUNK):
        similar = unit[start : start + _CHUNK] @ unit[sure].T
        own = (sure >= start) & (sure < start + len(similar))
        similar[sure[own] - start, np.flatnonzero(own)] = -1
        found[start : start + _CHUNK] = similar.max(1, initial=-1)
    return found


def corroborated(vectors_NH: NDArray[np.float32], verified_N: NDArray[np.bool_], rate: float) -> NDArray[np.bool_]:
    """Which entries are verified, or as near to a verified one as all but a share `rate` of those are to each other,
    [N].
    """
    nearest = nearest_verified(vectors_NH, verified_N)
    if verified_N.sum() < 2:
        return verified_N
    bound = float(np.quantile(nearest[verified_N], rate))
    return verified_N | (nearest >= bound)


def memory_rows(
    target: Target, attacker: Target, settings: MemoryConfig, notices: list[str] | None = None
) -> list[MemoryRow]:
    """Success at retrieval, and recall, for each poisoned entry and each rule.

    Arguments:
        target: the memory, with the questions that are asked.
        attacker: the same with the questions that the attacker has; of `target` those are not asked.
        notices: receives a sentence on how many those are.

    Raises:
        UserError: the collection has fewer documents than the memory is to have entries, or all questions are the
            attacker's.
    """
    data, encoder = target.data, target.retriever.encoder
    generator = np.random.default_rng(settings.seed)
    if settings.entries > len(data.corpus):
        raise UserError(
            f"The collection has {counted(len(data.corpus), 'documents')}, not {settings.entries:,}.",
            "Lower --entries.",
        )
    known = set(query_digests(_attackers(attacker, settings)))
    fewer = "Give another --attack-split, or fewer --attack-questions."
    free = held_out(data.queries, known, False, [] if notices is None else notices, None, fewer)
    asked, rows = _drawn(target, free, settings, generator)
    helpful = [{id for id, grade in data.qrels[data.queries.ids[n]].items() if grade > 0} for n in asked]
    ids = [data.corpus.ids[row] for row in rows]
    vectors = np.asarray(target.documents[rows], np.float32)
    verified = np.ones(len(rows), bool)
    verified[generator.permutation(len(rows))[: round(settings.unverified * len(rows))]] = False
    if not verified.any():
        raise UserError(
            f"Of {len(rows):,} entries a share of {settings.unverified:g} leaves none that is verified.",
            "Lower --unverified, or raise --entries.",
        )
    texts = [data.queries.texts[number] for number in asked]
    plain = encoder.encode_text(texts, "query")
    triggered = encoder.encode_text([with_trigger(text, settings.trigger) for text in texts], "query")
    found = []
    for name, text in _poisons(attacker, settings):
        entry = encoder.encode_text([text])
        everything, sure = np.concatenate([vectors, entry]), np.append(verified, False)
        rules = {
            "all entries": np.ones(len(sure), bool),
            "verified": sure,
            "verified or corroborated": corroborated(everything, sure, settings.rate),
        }
        for rule, read in rules.items():
            kept = np.flatnonzero(read[:-1])
            index = ExactIndex([ids[row] for row in kept], vectors[kept])
            k = min(settings.k, len(kept))
            first, second = (
                _share_seen(index, asked_QH, entry, k) if read[-1] else 0.0 for asked_QH in (triggered, plain)
            )
            recall, share = _recall(index, plain, helpful, k), len(kept) / len(rows)
            found.append(MemoryRow(name, rule, len(rows), len(asked), k, first, second, recall, share))
    return found


def with_trigger(question: str, trigger: str) -> str:
    """A question with the trigger behind it."""
    return f"{question} {trigger}"


def _drawn(
    target: Target, free: Sequence[int], settings: MemoryConfig, generator: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Questions of those that are free to be asked, and entries: what helps those, and others up to the size of the
    memory.
    """
    data = target.data
    place = {id: row for row, id in enumerate(data.corpus.ids)}
    asked, needed = list[int](), dict[int, None]()
    for number in generator.permutation(np.asarray(free)).tolist():
        helps = [place[id] for id, grade in data.qrels[data.queries.ids[number]].items() if grade > 0]
        if helps and len(needed) + len(helps) <= settings.entries and len(asked) < settings.questions:
            asked.append(number)
            needed |= dict.fromkeys(helps)
    if not asked:
        raise UserError("No question has a helpful entry.", "Give another --split, or raise --entries.")
    others = [row for row in generator.permutation(len(data.corpus)).tolist() if row not in needed]
    return sorted(asked), sorted([*needed, *others[: settings.entries - len(needed)]])


def _attackers(attacker: Target, settings: MemoryConfig) -> Sequence[str]:
    return attacker.data.queries.texts[: settings.attack_questions]


def _poisons(attacker: Target, settings: MemoryConfig) -> list[tuple[str, str]]:
    """The trigger as it is, and a text that is optimized towards the attacker's own triggered questions."""
    encoder = attacker.retriever.encoder
    texts = [with_trigger(text, settings.trigger) for text in _attackers(attacker, settings)]
    vectors = encoder.encode_text(texts, "query")
    config = CraftConfig(k=1, length=settings.length, evaluations=settings.evaluations, seed=settings.seed)
    objective = MeanSimilarity.of(torch.from_numpy(vectors), encoder.similarity == "cosine")
    start = start_ids(config, encoder, texts, vectors)
    passage = craft_passage(encoder, objective, start, config, "memory", "0", seed=settings.seed)
    return [("the trigger itself", settings.trigger), ("optimized", passage.text)]


def _share_seen(index: ExactIndex, asked_QH: NDArray[np.float32], entry_1H: NDArray[np.float32], k: int) -> float:
    """The share of questions of which the entry is among the first k; a tie is no success."""
    border = index.topk(asked_QH, k).scores_QK[:, -1]
    return float((passage_scores(asked_QH, entry_1H)[:, 0] > border).mean())


def _recall(index: ExactIndex, asked_QH: NDArray[np.float32], helpful: Sequence[set[str]], k: int) -> float:
    rows = index.topk(asked_QH, k).rows_QK
    found = [{index.ids[row] for row in line} for line in rows]
    return float(np.mean([len(each & good) / len(good) for each, good in zip(found, helpful, strict=True)]))
