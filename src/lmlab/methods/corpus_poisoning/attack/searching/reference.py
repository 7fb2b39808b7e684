"""The reference algorithm step by step (Zhong et al. 2023, their released code), for comparison: with its quirks, but
from stored vectors of queries and gold passages, which are the same numbers without the time.

Its quirks: no special tokens around the passage; the dot product whatever the encoder compares by; a candidate is taken
when its similarity *or* its count of beaten gold passages grows, and then the one of highest similarity, which may be
below the current one; the best passage is the one of lowest accuracy on held-back pairs.

Shapes: n pairs, H width, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.hardware.gemm import fast_inference
from lmlab.retrieval import AnyEncoder

_MOST_DEV = 1000  # as in the reference
_DEV_SHARE = 0.3  # as in the reference
_GOLD_TOKENS = 128  # as in the reference


@dataclass(frozen=True)
class ReferenceSettings:
    """What its algorithm is told: `ParityConfig` with the lengths of `CraftConfig`."""

    length: int
    candidates: int
    batch: int
    iterations: int
    gradient_batches: int = 1
    init_gold: bool = True


@dataclass
class ReferenceResult:
    """What a run gave.

    Attributes:
        ids_L: the passage of lowest accuracy on held-back pairs.
        iteration: when it was found; -1 for the start.
        accuracy: share of held-back pairs whose gold passage is above it.
        flips: (iteration, position, token, similarity before, similarity after) of accepted flips, on their batch.
    """

    ids_L: NDArray[np.int64]
    iteration: int
    accuracy: float
    dev_pairs: int
    flips: list[tuple[int, int, int, float, float]] = field(default_factory=list)


def pairs_of(qrels: dict[str, dict[str, int]], query_ids: Sequence[str]) -> list[tuple[str, str]]:
    """(query, gold passage) pairs: a query with m relevant passages counts m times, as in the reference."""
    return [(query, document) for query in query_ids for document, grade in qrels.get(query, {}).items() if grade > 0]


def reference_attack(
    encoder: AnyEncoder,
    queries_nH: NDArray[np.float32],
    golds_nH: NDArray[np.float32],
    gold_texts: Sequence[str],
    settings: ReferenceSettings,
    generator: np.random.Generator,
) -> ReferenceResult:
    """Optimize one passage for pairs in their order, of which the first 30 % (at most 1,000) are held back.

    Raises:
        UserError: there are too few pairs, or the encoder has no mask token.
    """
    held = min(_MOST_DEV, int(_DEV_SHARE * len(queries_nH)))
    if len(queries_nH) - held < 1:
        raise UserError(f"{len(queries_nH)} pairs of queries and passages are too few.")
    if encoder.tokenizer.mask_id is None:
        raise UserError("The encoder has no mask token, from which the reference starts.")
    queries, golds = torch.from_numpy(queries_nH), torch.from_numpy(golds_nH)
    gold_scores = (queries * golds).sum(1)
    train = np.arange(held, len(queries_nH))
    table = encoder.embedding_matrix_VD
    ids = np.full(settings.length, encoder.tokenizer.mask_id, np.int64)

    def vectors(rows_BL: NDArray[np.int64]) -> torch.Tensor:
        with torch.inference_mode(), fast_inference():
            return encoder.encode_ids(torch.from_numpy(rows_BL).to(encoder.device)).cpu()

    def accuracy(row: NDArray[np.int64]) -> float:
        scores = queries[:held] @ vectors(row[None])[0]
        return float((gold_scores[:held] > scores).double().mean()) if held else 1.0

    best = ReferenceResult(ids.copy(), -1, accuracy(ids), held)
    if best.accuracy == 1.0 and settings.init_gold:
        first = encoder.tokenizer.encode([gold_texts[int(train[0])]], _GOLD_TOKENS)[0]
        count = min(_GOLD_TOKENS, settings.length)
        ids[:count] = (first + [encoder.tokenizer.pad_id] * count)[:count]
        best = ReferenceResult(ids.copy(), -1, accuracy(ids), held)

    def batches() -> list[NDArray[np.int64]]:
        size = min(settings.batch, len(train))
        return [generator.choice(train, size, replace=False) for _ in range(settings.gradient_batches)]

    for iteration in range(settings.iterations):
        mean = torch.stack([queries[rows].mean(0) for rows in batches()]).mean(0)
        with torch.enable_grad():
            embeddings = table[torch.from_numpy(ids)[None]].detach().requires_grad_()
            (gradient,) = torch.autograd.grad((encoder.encode_embeds(embeddings).cpu() @ mean)[0], embeddings)
        place = int(generator.integers(settings.length))
        tokens = (table @ gradient[0, place]).topk(settings.candidates).indices.cpu().numpy()
        trial = np.tile(ids, (len(tokens) + 1, 1))
        trial[1:, place] = tokens
        found = vectors(trial)
        similar = np.zeros(len(trial))
        beaten = np.zeros(len(trial), np.int64)
        for rows in batches():
            scores = queries[rows] @ found.T
            similar += scores.mean(0).double().numpy()
            beaten += (scores >= gold_scores[rows][:, None]).sum(0).numpy()
        if not ((similar[1:] > similar[0]).any() or (beaten[1:] > beaten[0]).any()):
            continue
        taken = 1 + int(similar[1:].argmax())
        best.flips.append((iteration, place, int(tokens[taken - 1]), float(similar[0]), float(similar[taken])))
        ids = trial[taken]
        now = accuracy(ids)
        if now < best.accuracy:
            best.ids_L, best.iteration, best.accuracy = ids.copy(), iteration, now
    return best
