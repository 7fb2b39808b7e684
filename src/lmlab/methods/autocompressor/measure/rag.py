"""Retrieval-augmented language modeling with summaries in place of passages (Chevalier et al. 2023, section 6.1).

Shapes: K passages, T tokens of a continuation, N vectors of a summary, P vectors, D model width.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.evals.rows import RowFile
from lmlab.files import read_mapping, sha256_json, write_json
from lmlab.hardware.gemm import fast_inference
from lmlab.methods.autocompressor.compressor.files import fingerprint
from lmlab.methods.autocompressor.compressor.model import AutoCompressor
from lmlab.models import hash_of_ids
from lmlab.progress import progress
from lmlab.stats import bootstrap

RESULTS, ROWS = "rag.json", "rows.jsonl"
LINES = ("replug", "soft_replug", "fused", "fused_as_retrieved", "fused_random", "fused_passages")


def mixture(log_probs_KT: Tensor, scores_K: Tensor) -> Tensor:
    """REPLUG (Shi et al. 2023): log-probabilities [T] of the mean over passages, weighted by the softmax of their
    scores, at each token.
    """
    weights_K = torch.log_softmax(scores_K.double(), 0)
    return torch.logsumexp(log_probs_KT.double() + weights_K[:, None], 0)


def smoothed(log_probs_T: Tensor, without_T: Tensor) -> Tensor:
    """Log-probabilities of the mean of two probabilities at each token: with the passages, and without."""
    return torch.logaddexp(log_probs_T.double(), without_T.double()) - math.log(2)


def by_distance(summaries: Sequence[Tensor], query_ND: Tensor) -> list[int]:
    """The order in which passages are read: the farthest from the context first, the nearest last, next to it, by the
    Euclidean distance of their flattened summaries. A passage of several segments is as near as its nearest one.

    Arguments:
        summaries: of each passage, [segments x N, D].
        query_ND: that of the context.
    """
    distances = [
        float((vectors.view(-1, *query_ND.shape).float() - query_ND.float()).flatten(1).norm(dim=1).min())
        for vectors in summaries
    ]
    return sorted(range(len(distances)), key=lambda number: (-distances[number], number))


@dataclass(frozen=True)
class Retrieved:
    """A passage that was found for a context.

    Attributes:
        score: of the retriever.
        vectors_ND: its summary, compressed by itself; of a passage of several segments those of all of them.
        ids: its tokens.
    """

    score: float
    vectors_ND: Tensor
    ids: Sequence[int]


class Reader:
    """Probabilities of a continuation after a context, with passages or without.

    Arguments:
        compressor: that reads.
        begin: the marks with which its tokenizer begins a text. A context that has them keeps them in front of plain
            passages.
    """

    def __init__(self, compressor: AutoCompressor, begin: Sequence[int] = ()) -> None:
        self.compressor, self._begin = compressor, list(begin)

    @torch.no_grad()
    def log_probs(
        self, context: Sequence[int], continuation: Sequence[int], vectors: Sequence[Tensor | None]
    ) -> Tensor:
        """Log-probabilities of the continuation's tokens behind each of several soft prompts [P, D] of one length, or
        None, [K, T].
        """
        ids_KS = self._ids(context, continuation).expand(len(vectors), -1)
        prompt = None if vectors[0] is None else torch.stack([each for each in vectors if each is not None])
        targets = torch.full_like(ids_KS, -100)
        start = len(context) - 1
        targets[:, start : start + len(continuation)] = ids_KS[:, start + 1 :]
        out = self.compressor(ids_KS, soft_prompt=prompt, targets_BT=targets)
        return -out.segments[0].loss.tokens[:, start : start + len(continuation)]

    def summary(self, context: Sequence[int]) -> Tensor:
        """The context's own summary, [N, D].

        Raises:
            SegmentError: the context and its summary tokens exceed the window.
        """
        return self.compressor.compress(self._ids(context, ()), segment_lengths=len(context)).vectors_BPD[0]

    def plain(self, passages: Sequence[Sequence[int]], context: Sequence[int], continuation: Sequence[int]) -> Tensor:
        """Log-probabilities behind plain passages, the last of which fit the window, [T]."""
        window = self.compressor.model.config.max_seq_len
        text = [token for passage in passages for token in passage]
        room = window - len(context) - len(continuation)
        before = text[max(0, len(text) - room) :] if room > 0 else []
        marks = len(self._begin) if list(context[: len(self._begin)]) == self._begin else 0
        return self.log_probs([*context[:marks], *before, *context[marks:]], continuation, [None])[0]

    def read(
        self,
        context: Sequence[int],
        continuation: Sequence[int],
        found: Sequence[Retrieved],
        lines: Sequence[str],
        others: Sequence[Retrieved] = (),
    ) -> dict[str, float]:
        """Mean loss of the continuation by line, in nats a token, `none` among them.

        Arguments:
            found: the passages, best first.
            others: as many that have nothing to do with the context.
        """
        without_T = self.log_probs(context, continuation, [None])[0]
        losses = {"none": -float(without_T.double().mean())}
        scores_K = torch.tensor([each.score for each in found], dtype=torch.float64)
        for line in lines:
            match line:
                case "replug":
                    each = [self.plain([one.ids], context, continuation) for one in found]
                    log_probs_T = mixture(torch.stack(each), scores_K)
                case "soft_replug":
                    log_probs_T = mixture(self._behind_each(context, continuation, found), scores_K)
                case "fused_passages":
                    order = [found[number].ids for number in reversed(range(len(found)))]
                    log_probs_T = smoothed(self.plain(order, context, continuation), without_T)
                case _:
                    log_probs_T = smoothed(self._fused(line, context, continuation, found, others), without_T)
            losses[line] = -float(log_probs_T.double().mean())
        return losses

    def _behind_each(self, context: Sequence[int], continuation: Sequence[int], found: Sequence[Retrieved]) -> Tensor:
        """Log-probabilities behind the summary of each passage, [K, T]; those of one length are read together."""
        by_length: dict[int, list[int]] = {}
        for number, one in enumerate(found):
            by_length.setdefault(len(one.vectors_ND), []).append(number)
        rows: dict[int, Tensor] = {}
        for numbers in by_length.values():
            each_KT = self.log_probs(context, continuation, [found[number].vectors_ND for number in numbers])
            rows |= zip(numbers, each_KT, strict=True)
        return torch.stack([rows[number] for number in range(len(found))])

    def _fused(
        self,
        line: str,
        context: Sequence[int],
        continuation: Sequence[int],
        found: Sequence[Retrieved],
        others: Sequence[Retrieved],
    ) -> Tensor:
        """Log-probabilities behind the summaries of all passages, one after the other, the most relevant last, [T]."""
        chosen = list(others if line == "fused_random" else found)
        order = list(reversed(range(len(chosen))))
        if line == "fused":
            order = by_distance([one.vectors_ND for one in chosen], self.summary(context))
        both_PD = torch.cat([chosen[number].vectors_ND for number in order])
        return self.log_probs(context, continuation, [both_PD])[0]

    def _ids(self, context: Sequence[int], continuation: Sequence[int]) -> Tensor:
        device = self.compressor.model.embedding.weight.device
        return torch.tensor([[*context, *continuation]], device=device)


@dataclass(frozen=True)
class RagSettings:
    """What is measured.

    Attributes:
        k: numbers of passages.
        context, continuation: tokens.
        lines: of `LINES`.
        texts: most texts.
        seed: of the random passages.
    """

    k: tuple[int, ...] = (1, 3, 5, 10)
    context: int = 128
    continuation: int = 128
    lines: tuple[str, ...] = LINES
    texts: int = 200
    seed: int = 0


@dataclass(frozen=True)
class Passages:
    """What can be found.

    Attributes:
        ids: names of all passages.
        summary: of one, [N, D], or so many for each of its segments.
        tokens: of one.
    """

    ids: Sequence[str]
    summary: Any
    tokens: Any

    def take(self, id: str, score: float) -> Retrieved:
        """A passage with the retriever's score."""
        return Retrieved(score, self.summary(id), self.tokens(id))


def drawn(names: Sequence[str], id: str, found: Collection[str], settings: RagSettings) -> list[str]:
    """Passages that have nothing to do with a text: neither the text itself nor any that was found for it, in an order
    of chance; none where no line reads them.

    Raises:
        UserError: there are not as many as are asked for.
    """
    if "fused_random" not in settings.lines:
        return []
    left, most = [name for name in names if name != id and name not in found], max(settings.k)
    if len(left) < most:
        raise UserError(
            f"fused_random reads {most} passages beside the {len(found)} that were found, and there are {len(left)}.",
            "Lower --k, or leave the line out (--lines).",
        )
    return random.Random(f"{settings.seed}/{id}").sample(left, most)


def measure_rag(
    reader: Reader,
    texts: Sequence[tuple[str, Sequence[int]]],
    passages: Passages,
    retrieve: Any,
    settings: RagSettings,
    out: Path,
    about: Sequence[Any] = (),
) -> dict[str, Any]:
    """Losses by line and number of passages, and gains over no passages with paired intervals; texts that an earlier
    attempt read are not read again.

    Arguments:
        texts: ids and tokens, of which the first `context` and the `continuation` behind them are used.
        retrieve: (id of the text, tokens of its context, k) -> ids and scores of passages, best first.
        about: what else decides the figures, such as the retriever and the store.

    Raises:
        UserError: no text is long enough, there are too few passages, or the folder holds another measurement.
    """
    needed, most = settings.context + settings.continuation, max(settings.k)
    long = [(id, ids) for id, ids in texts if len(ids) >= needed][: settings.texts]
    if not long:
        raise UserError(f"No text has {needed} tokens (context and continuation).")
    if len(passages.ids) < most:
        raise UserError(f"{most} passages are asked for, and there are {len(passages.ids)}.", "Lower --k.")
    out.mkdir(parents=True, exist_ok=True)
    read = [(id, hash_of_ids(ids[:needed])) for id, ids in long]
    key = sha256_json([vars(settings), fingerprint(reader.compressor), read, list(passages.ids), list(about)])
    if (out / "key.json").exists() and read_mapping(out / "key.json").get("key") != key:
        raise UserError(f"'{out}' holds the measurement of other texts, models or settings.", "Choose another.")
    write_json(out / "key.json", {"key": key})
    rows = RowFile(out / ROWS)
    done = rows.done()
    with progress("measure", len(long), "texts", start=len(done)) as advance, fast_inference():
        for id, ids in long:
            if id in done:
                continue
            context, continuation = list(ids[: settings.context]), list(ids[settings.context : needed])
            hits = retrieve(id, context, most)
            if len(hits) < most:
                raise UserError(
                    f"{most} passages are asked for, and {len(hits)} can be found for '{id}'.", "Lower --k."
                )
            found, found_names = [passages.take(*hit) for hit in hits], {name for name, _ in hits}
            others = [passages.take(name, 0.0) for name in drawn(passages.ids, id, found_names, settings)]
            row: dict[str, Any] = {"id": id}
            for k in settings.k:
                losses = reader.read(context, continuation, found[:k], settings.lines, others[:k])
                row |= {f"{line}/{k}": loss for line, loss in losses.items() if line != "none"} | {
                    "none": losses["none"]
                }
            rows.append(row)
            advance(1)
    summary = summarize(rows.finish([id for id, _ in long]))
    summary |= {"texts": len(long), "too_short": sum(len(ids) < needed for _, ids in texts)}
    write_json(out / RESULTS, summary)
    return summary


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Perplexity and its gain over no passages in percent, with a paired interval over texts."""
    none = np.array([row["none"] for row in rows], float)
    lines: dict[str, Any] = {"none": {"perplexity": math.exp(none.mean())}}
    for name in [name for name in rows[0] if name not in ("id", "none")]:
        values = np.array([row[name] for row in rows], float)

        def gain(index: Any, values: Any = values) -> float:
            return 100 * (1 - math.exp(float((values[index] - none[index]).mean())))

        found = bootstrap(gain, len(values))
        lines[name] = {
            "perplexity": math.exp(values.mean()),
            "gain_percent": found.value,
            "low": None if math.isnan(found.low) else found.low,
            "high": None if math.isnan(found.high) else found.high,
        }
    return {"lines": lines}


def table(found: Mapping[str, Any]) -> Iterator[list[str]]:
    """Rows for people: line, passages, perplexity, gain."""
    for name, cell in found["lines"].items():
        line, _, k = name.partition("/")
        gain = "" if "gain_percent" not in cell else f"{cell['gain_percent']:+.2f} %"
        bounds = "" if cell.get("low") is None else f"{cell['low']:+.2f} to {cell['high']:+.2f}"
        yield [line, k, f"{cell['perplexity']:.3f}", gain, bounds]
