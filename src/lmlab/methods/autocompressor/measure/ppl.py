"""Perplexity of a text after compressed context, beside what it is after other contexts (Chevalier et al. 2023, section
4.2).

Shapes: T tokens of the text that is predicted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lmlab.errors import UserError
from lmlab.evals.rows import RowFile
from lmlab.files import read_mapping, sha256_json, write_json
from lmlab.hardware.gemm import fast_inference
from lmlab.methods.autocompressor.compressor.files import fingerprint
from lmlab.methods.autocompressor.compressor.model import AutoCompressor
from lmlab.methods.autocompressor.compressor.vectors import SummaryVectors
from lmlab.models import IGNORE, SegmentError, hash_of_ids
from lmlab.progress import progress
from lmlab.stats import bootstrap

Line = Literal["summary", "shuffled", "truncate", "full", "rmt", "base"]
LINES: tuple[Line, ...] = ("summary", "shuffled", "truncate", "full", "rmt", "base")
RESULTS, ROWS = "ppl.json", "rows.jsonl"
_REFUSED = "refused"  # of a row: lines that were left out so far, and why


@dataclass(frozen=True)
class PplSettings:
    """What is measured.

    Attributes:
        contexts: tokens before the text, in rising order, that are compressed (or read).
        target: tokens of the text.
        segment: tokens of a compressed segment.
        lines: besides summary: shuffled (another document's vectors), truncate (as many plain tokens as there are
            vectors), full (all of them plain), rmt and base (other models).
        texts: most documents.
    """

    contexts: tuple[int, ...]
    target: int
    segment: int
    lines: tuple[Line, ...] = ("shuffled", "truncate", "full")
    texts: int = 100


class Measurement:
    """Reads documents with each context and line.

    Arguments:
        compressor: what is measured.
        others: compressors of the lines rmt and base.

    Raises:
        UserError: a line needs another model, or the target exceeds the window.
    """

    def __init__(
        self, compressor: AutoCompressor, settings: PplSettings, others: Mapping[str, AutoCompressor] | None = None
    ) -> None:
        self.compressor, self.settings, self.others = compressor, settings, dict(others or {})
        for line in settings.lines:
            if line in ("rmt", "base") and line not in self.others:
                raise UserError(f"The line {line} needs a model of its own.", f"Name it with --{line}.")
        if settings.target < 2:
            raise UserError("A target of less than 2 tokens predicts nothing.")
        self.refused: dict[str, str] = {}
        self._vectors: dict[str, tuple[list[int], SummaryVectors]] = {}

    @property
    def needed(self) -> int:
        """Tokens of a document."""
        return self.settings.contexts[-1] + self.settings.target

    @torch.no_grad()
    def read(self, ids: Sequence[int], other: Sequence[int]) -> dict[str, float]:
        """Mean losses of the text, in nats a token, by `LINE/CONTEXT`.

        The text's first token is predicted by nothing in any line, so that all lines predict the same tokens.

        Arguments:
            ids: the document, of which the text is the end of its first `needed` tokens.
            other: another document, for the line shuffled.
        """
        limit, target = self.settings.contexts[-1], self.settings.target
        text, found = list(ids[limit : limit + target]), dict[str, float]()
        for context in self.settings.contexts:
            before, foreign = list(ids[limit - context : limit]), list(other[limit - context : limit])
            # shuffled first: the vectors of the document before are still held
            for line in sorted(("summary", *self.settings.lines), key=lambda each: each != "shuffled"):
                if (value := self._line(line, before, foreign, text)) is not None:
                    found[f"{line}/{context}"] = value
        return found

    def _line(self, line: str, before: list[int], foreign: list[int], text: list[int]) -> float | None:
        """None where a line is no other than that without context, or cannot be."""
        if not before and line in ("shuffled", "truncate", "full"):
            return None
        try:
            match line:
                case "summary" | "rmt" | "base":
                    return self._after_vectors(line, before, text)
                case "shuffled":
                    return self._after_vectors(line, foreign, text)
                case "truncate":
                    return self._after_text(before[len(before) - self._slots(len(before)) :], text)
                case _:
                    return self._after_text(before, text)
        except SegmentError as error:
            self.refused.setdefault(f"{line}/{len(before)}", error.message)
            return None

    def _slots(self, context: int) -> int:
        """How many vectors stand for a context, but never more than it has tokens."""
        segments = -(-context // self.settings.segment) if self.compressor.config.accumulate else 1
        return min(context, segments * self.compressor.summary_length)

    def _after_vectors(self, line: str, before: list[int], text: list[int]) -> float:
        compressor = self.others.get(line, self.compressor)
        if before and not compressor.summary_length:
            return self._after_text(before, text, compressor)
        ids = _row(compressor, text)
        vectors = self._compressed(line, before) if before else None
        return float(compressor(ids, soft_prompt=vectors, labels=ids).loss)

    def _compressed(self, line: str, before: list[int]) -> SummaryVectors:
        """The vectors of a context. Those of the newest are kept: the line shuffled reads them before the next text."""
        name = f"{'summary' if line == 'shuffled' else line}/{len(before)}"
        held = self._vectors.get(name)
        if held is not None and held[0] == before:
            return held[1]
        compressor = self.others.get(line, self.compressor)
        # what does not fill a segment stands first: the segments next to the text are whole
        size, rest = self.settings.segment, len(before) % self.settings.segment
        cut = [rest] * (rest > 0) + [size] * (len(before) // size)
        vectors = compressor.compress(_row(compressor, before), segment_lengths=cut)
        self._vectors[name] = (before, vectors)
        return vectors

    def _after_text(self, before: list[int], text: list[int], compressor: AutoCompressor | None = None) -> float:
        compressor = compressor or self.compressor
        ids = _row(compressor, [*before, *text])
        labels = ids.clone()
        labels[:, : len(before) + 1] = IGNORE
        return float(compressor(ids, labels=labels).loss)


def _row(compressor: AutoCompressor, ids: Sequence[int]) -> torch.Tensor:
    return torch.tensor([list(ids)], device=compressor.model.embedding.weight.device)


@torch.no_grad()
def measure_ppl(measurement: Measurement, texts: Sequence[tuple[str, Sequence[int]]], out: Path) -> dict[str, Any]:
    """Measure documents and write `ppl.json` and `rows.jsonl`; documents that an earlier attempt measured are not read
    again.

    Arguments:
        texts: ids and tokens; those that are too short are left out and counted.

    Raises:
        UserError: fewer than two documents are long enough, or the folder holds another measurement.
    """
    settings = measurement.settings
    long = [(id, ids) for id, ids in texts if len(ids) >= measurement.needed][: settings.texts]
    if len(long) < 2:
        raise UserError(
            f"{len(long)} documents have {measurement.needed:,} tokens (context and target); at least 2 are needed.",
            "Shorten the contexts or the target, or give longer documents.",
        )
    out.mkdir(parents=True, exist_ok=True)
    models = {"compressor": measurement.compressor, **measurement.others}
    read = [(id, hash_of_ids(ids[: measurement.needed])) for id, ids in long]
    told = [vars(settings), {name: fingerprint(each) for name, each in models.items()}, read]
    key = sha256_json(told)
    if (out / "key.json").exists() and read_mapping(out / "key.json").get("key") != key:
        raise UserError(f"'{out}' holds the measurement of other documents, models or settings.", "Choose another.")
    write_json(out / "key.json", {"key": key})
    rows = RowFile(out / ROWS)
    done = rows.done()
    with progress("measure", len(long), "documents", start=len(done)) as advance, fast_inference():
        for number, (id, ids) in enumerate(long):
            if id not in done:
                row: dict[str, Any] = {"id": id, **measurement.read(ids, long[number - 1][1])}
                rows.append(row | ({_REFUSED: dict(measurement.refused)} if measurement.refused else {}))
                advance(1)
    finished = rows.finish([id for id, _ in long])
    found = summarize(finished, settings)
    found |= {
        "texts": len(long),
        "too_short": sum(len(ids) < measurement.needed for _, ids in texts),
        "settings": {**vars(settings), "contexts": list(settings.contexts), "lines": list(settings.lines)},
        "refused": {name: why for row in finished for name, why in row.get(_REFUSED, {}).items()},
    }
    write_json(out / RESULTS, found)
    return found


def summarize(rows: Sequence[Mapping[str, Any]], settings: PplSettings) -> dict[str, Any]:
    """Perplexities by line and context, gains over no context with intervals over documents (paired bootstrap; of rmt
    and base over their own loss without context), and differences to summaries.
    """
    names = sorted({name for row in rows for name in row if name not in ("id", _REFUSED)}, key=_order)
    losses = {name: np.array([row[name] for row in rows], float) for name in names if all(name in row for row in rows)}
    none = losses.get("summary/0")
    cells = dict[str, Any]()
    for name, values in losses.items():
        line, before = name.split("/")
        cell: dict[str, Any] = {"loss": float(values.mean()), "perplexity": math.exp(values.mean())}
        if (without := losses.get(f"{line}/0", none)) is not None and int(before):
            cell["gain"] = _interval(without - values)
        summary = losses.get(f"summary/{before}")
        if summary is not None and line != "summary":
            cell["summary_better_by"] = _interval(values - summary)
        cells[name] = cell
    retained = {}
    for context in settings.contexts:
        summary, full = losses.get(f"summary/{context}"), losses.get(f"full/{context}")
        if context and none is not None and summary is not None and full is not None:
            retained[str(context)] = _retained(none, summary, full)
    return {"lines": cells, "gain_retained": retained}


def _interval(differences: np.ndarray[Any, Any]) -> dict[str, float]:
    found = bootstrap(lambda index: float(differences[index].mean()), len(differences))
    return {"nats": found.value, "low": found.low, "high": found.high}


def _retained(none: Any, summary: Any, full: Any) -> dict[str, float | None]:
    """(NLL_none - NLL_summary) / (NLL_none - NLL_full); None where full context gains nothing that its interval can
    tell from 0: a share of that is noise.
    """
    if not _interval(none - full)["low"] > 0:
        return dict.fromkeys(("share", "low", "high"))

    def share(index: Any) -> float:
        gain = float((none[index] - full[index]).mean())
        return float((none[index] - summary[index]).mean()) / gain if gain > 0 else math.nan

    found = bootstrap(share, len(none))
    return {
        name: value if math.isfinite(value) else None
        for name, value in (("share", found.value), ("low", found.low), ("high", found.high))
    }


def _order(name: str) -> tuple[int, int]:
    line, _, context = name.partition("/")
    return (LINES.index(line) if line in LINES else len(LINES), int(context))


def table(found: Mapping[str, Any]) -> Iterator[list[str]]:
    """Rows for people: line, context, perplexity, gain with interval, how much better summaries are."""

    def told(interval: Mapping[str, float] | None) -> str:
        return (
            "" if interval is None else f"{interval['nats']:+.3f} ({interval['low']:+.3f} to {interval['high']:+.3f})"
        )

    for name, cell in found["lines"].items():
        line, _, context = name.partition("/")
        yield [line, context, f"{cell['perplexity']:.3f}", told(cell.get("gain")), told(cell.get("summary_better_by"))]
