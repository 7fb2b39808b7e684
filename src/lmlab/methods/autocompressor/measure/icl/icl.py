"""Accuracy with demonstrations that are compressed, plain, or both (Chevalier et al. 2023, section 5).

Shapes: R rows, T tokens.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.files import read_mapping, sha256_json, write_json
from lmlab.hardware.gemm import fast_inference
from lmlab.methods.autocompressor.compressor.files import fingerprint
from lmlab.methods.autocompressor.compressor.model import AutoCompressor
from lmlab.methods.autocompressor.compressor.vectors import SummaryVectors
from lmlab.methods.autocompressor.measure.icl.templates import IclTask, labels_of
from lmlab.models import IGNORE
from lmlab.models.prompts.segments import check_window
from lmlab.progress import progress

RESULTS = "icl.json"
_SEPARATOR = "\n\n"
_FIRST = 16  # demonstrations after which is looked whether the window holds them, then after twice as many
_ROWS_AT_ONCE = 32  # of like length: more take memory for logits, fewer start more passes


@dataclass(frozen=True)
class IclSettings:
    """What stands before a question.

    Attributes:
        soft: demonstrations of each segment that is compressed.
        soft_tokens: in place of their numbers: so many tokens of each of so many segments, filled with whole
            demonstrations.
        plain: demonstrations that are read as they are, behind the vectors.
        plain_tokens: in place of their number: as many as fit.
        seeds: draws of demonstrations.
        calibrate, balance: as the paper does for the task, unless they are said.
        limit: most tests.
    """

    soft: tuple[int, ...] = ()
    soft_tokens: tuple[int, ...] = ()
    plain: int = 0
    plain_tokens: int | None = None
    seeds: int = 7
    calibrate: bool | None = None
    balance: bool | None = None
    limit: int | None = None


def draw(labels: Sequence[int], count: int, seed: int, balanced: bool) -> list[int]:
    """The numbers of demonstrations: without replacement, or as many of each label.

    Balanced: the numbers of each label are shuffled and laid in rounds of one of each; a stretch of the rounds, from a
    random start, is taken (once more from their beginning if they are too short).

    Raises:
        UserError: there are not so many.
    """
    chance = random.Random(seed)
    if not balanced:
        if count > len(labels):
            raise UserError(f"{count} demonstrations are asked for, and there are {len(labels)}.")
        return chance.sample(range(len(labels)), count)
    by_label: dict[int, list[int]] = {}
    for number, label in enumerate(labels):
        by_label.setdefault(label, []).append(number)
    for numbers in by_label.values():
        chance.shuffle(numbers)
    rounds = [number for each in zip(*(by_label[label] for label in sorted(by_label)), strict=False) for number in each]
    if not rounds:
        raise UserError("There are no demonstrations of some labels.")
    while len(rounds) < count:
        rounds = rounds + rounds
    start = chance.randrange(len(rounds) - count + 1)
    return rounds[start : start + count]


def seed_of(seed: int, soft: int, plain: int) -> int:
    """The seed of a draw, so that each number of demonstrations has its own."""
    return 10**6 * seed + 10**3 * soft + plain


class Prompting:
    """Turns items into tokens, and scores answers.

    Arguments:
        compressor: that reads.
        tokenizer: its tokenizer.
        task: what is asked.
    """

    def __init__(self, compressor: AutoCompressor, tokenizer: Tokenizer, task: IclTask) -> None:
        self.compressor, self.tokenizer, self.task = compressor, tokenizer, task

    def demonstration(self, item: Mapping[str, Any]) -> str:
        """A solved item, with the blank line after it."""
        return self.task.told(item, self.task.answers(item)[item["label"]]) + _SEPARATOR

    def filled(self, items: Sequence[Mapping[str, Any]], tokens: int) -> int:
        """How many of the demonstrations, from the first, fit so many tokens."""
        text = ""
        for count, item in enumerate(items):
            text += self.demonstration(item)
            if len(self.tokenizer.encode(text, "as_text")) > tokens:
                return count
        return len(items)

    def require_room(self, settings: IclSettings) -> None:
        """Refuse more segments than the window can hold, whatever the demonstrations are, and more tokens than it has.

        Raises:
            SegmentError: their vectors leave no room, or a segment is longer than the window.
        """
        shape, config = self.compressor.model.config, self.compressor.config
        # of demonstrations that are counted not even one token has room
        soft = settings.soft_tokens or (1,) * len(settings.soft)
        for number, tokens in enumerate(soft):
            check_window(shape, config.positions_behind(number), tokens, config.summary_length)
        check_window(shape, config.positions_behind(len(soft)), settings.plain_tokens or 1, 0)

    def fitting(self, items: Sequence[Mapping[str, Any]], behind: int, summary: bool) -> list[int]:
        """The tokens of demonstrations that stand behind the vectors of so many segments; the begin mark stands before
        the first text alone. Some of many are looked at before all, so that a text far beyond the window is refused at
        once.

        Arguments:
            summary: they are compressed.

        Raises:
            SegmentError: the window does not hold them.
        """
        config = self.compressor.config
        encode = self.tokenizer.encode if behind else self.tokenizer.encode_prompt
        told = list(map(self.demonstration, items))
        count, ids = min(_FIRST, len(told)), list[int]()
        while told:
            ids = encode("".join(told[:count]), "as_text")
            before, n_summary = config.positions_behind(behind), config.summary_length if summary else 0
            check_window(self.compressor.model.config, before, len(ids), n_summary)
            if count == len(told):
                break
            count = min(2 * count, len(told))
        return ids

    def compressed(self, segments: Sequence[Sequence[Mapping[str, Any]]]) -> SummaryVectors | None:
        """The vectors of demonstrations, a segment each; the begin mark stands before the first alone."""
        cut, ids = list[int](), list[int]()
        for number, items in enumerate(segments):
            own = self.fitting(items, number, True)
            cut.append(len(own))
            ids += own
        if not ids:
            return None
        device = self.compressor.model.embedding.weight.device
        return self.compressor.compress(torch.tensor([ids], device=device), segment_lengths=cut)

    def rows(self, before: str, item: Mapping[str, Any], first: bool) -> Iterator[tuple[list[int], int]]:
        """For each answer the tokens of what is read, and how many of them are the answer's: those behind the tokens of
        the item without one, so that template and answer are tokenized together.

        Arguments:
            before: plain demonstrations.
            first: nothing was compressed, so that the begin mark stands here.
        """
        encode = self.tokenizer.encode_prompt if first else self.tokenizer.encode
        unanswered = len(encode(before + self.task.told(item, ""), "as_text"))
        for answer in self.task.answers(item):
            ids = encode(before + self.task.told(item, answer), "as_text")
            yield ids, max(1, len(ids) - unanswered)

    @torch.no_grad()
    def losses(self, rows: Sequence[tuple[list[int], int]], vectors: SummaryVectors | None) -> list[float]:
        """The mean loss of each row's answer, in nats a token."""
        order = sorted(range(len(rows)), key=lambda number: len(rows[number][0]))
        found, device = [0.0] * len(rows), self.compressor.model.embedding.weight.device
        for start in range(0, len(order), _ROWS_AT_ONCE):
            chosen = order[start : start + _ROWS_AT_ONCE]
            longest = max(len(rows[number][0]) for number in chosen)
            ids_RT = torch.zeros(len(chosen), longest, dtype=torch.long)
            mask_RT = torch.zeros(len(chosen), longest, dtype=torch.bool)
            labels_RT = torch.full((len(chosen), longest), IGNORE)
            for place, number in enumerate(chosen):
                ids, count = rows[number]
                ids_RT[place, : len(ids)] = torch.tensor(ids)
                mask_RT[place, : len(ids)] = True
                labels_RT[place, len(ids) - count : len(ids)] = torch.tensor(ids[len(ids) - count :])
            out = self.compressor(
                ids_RT.to(device), mask_RT.to(device), soft_prompt=vectors, labels=labels_RT.to(device)
            )
            sums = out.segments[0].loss.tokens.double().sum(1).tolist()
            for place, number in enumerate(chosen):
                found[number] = sums[place] / rows[number][1]
        return found


def predict(
    prompting: Prompting,
    tests: Sequence[Mapping[str, Any]],
    vectors: SummaryVectors | None,
    plain: Sequence[Mapping[str, Any]],
    calibrate: bool,
) -> list[int]:
    """The answer of least loss for each test; with calibration, of least loss beyond that of the same answer to an
    emptied item.
    """
    task, before = prompting.task, "".join(prompting.demonstration(item) for item in plain)
    first = vectors is None
    rows = [row for item in tests for row in prompting.rows(before, item, first)]
    losses = iter(prompting.losses(rows, vectors))
    found = [[next(losses) for _ in task.answers(item)] for item in tests]
    if calibrate:
        emptied = [task.emptied(item) for item in (tests if task.calibrates_each else tests[:1])]
        rows = [row for item in emptied for row in prompting.rows(before, item, first)]
        losses = iter(prompting.losses(rows, vectors))
        base = [[next(losses) for _ in task.answers(item)] for item in emptied]
        base = base if task.calibrates_each else base * len(tests)
        found = [[a - b for a, b in zip(own, other, strict=True)] for own, other in zip(found, base, strict=True)]
    return [min(range(len(own)), key=own.__getitem__) for own in found]


def measure_icl(
    prompting: Prompting,
    demonstrations: Sequence[Mapping[str, Any]],
    tests: Sequence[Mapping[str, Any]],
    settings: IclSettings,
    out: Path,
) -> dict[str, Any]:
    """Accuracies over draws of demonstrations, written to `icl.json`; draws that an earlier attempt finished are kept.

    Raises:
        UserError: there are too few demonstrations, or another measurement.
        SegmentError: the window does not hold them.
    """
    task = prompting.task
    tests = list(tests[: settings.limit])
    if not tests:
        raise UserError("There are no tests.")
    prompting.require_room(settings)
    calibrate = task.calibrated if settings.calibrate is None else settings.calibrate
    told = [vars(settings), task.name, fingerprint(prompting.compressor), prompting.tokenizer.fingerprint, tests]
    key = sha256_json([*told, list(demonstrations), type(task).__name__])  # whose template may be another one
    path = out / RESULTS
    known = read_mapping(path) if path.exists() else {}
    if known and known.get("key") != key:
        raise UserError(f"'{out}' holds the measurement of another model, other data or settings.", "Choose another.")
    out.mkdir(parents=True, exist_ok=True)
    by_seed = list(known.get("seeds", []))
    with progress("measure", settings.seeds, "draws", start=len(by_seed)) as advance, fast_inference():
        for seed in range(len(by_seed), settings.seeds):
            segments, plain = _drawn(prompting, demonstrations, settings, seed)
            prompting.fitting(plain, len(segments), False)  # before it is read with each test
            vectors = prompting.compressed(segments)
            predicted = predict(prompting, tests, vectors, plain, calibrate)
            right = sum(a == b for a, b in zip(predicted, labels_of(tests), strict=True))
            by_seed.append(
                {
                    "accuracy": right / len(tests),
                    "vectors": 0 if vectors is None else vectors.length,
                    "soft": [len(each) for each in segments],
                    "plain": len(plain),
                }
            )
            write_json(path, {"key": key, "task": task.name, "seeds": by_seed})
            advance(1)
    accuracies = [each["accuracy"] for each in by_seed]
    found = {
        "key": key,
        "task": task.name,
        "tests": len(tests),
        "calibrated": calibrate,
        "accuracy": statistics.fmean(accuracies),
        "sd": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "majority": max(labels_of(tests).count(label) for label in set(labels_of(tests))) / len(tests),
        "seeds": by_seed,
    }
    write_json(path, found)
    return found


def _drawn(
    prompting: Prompting, items: Sequence[Mapping[str, Any]], settings: IclSettings, seed: int
) -> tuple[list[list[Mapping[str, Any]]], list[Mapping[str, Any]]]:
    """The demonstrations of each segment, and the plain ones; none is drawn twice, as long as there are enough."""
    balanced = prompting.task.balanced if settings.balance is None else settings.balance
    by_tokens = bool(settings.soft_tokens) or settings.plain_tokens is not None
    total = len(items) if by_tokens else sum(settings.soft) + settings.plain
    soft_count = 0 if by_tokens else sum(settings.soft)
    chosen = [items[n] for n in draw(labels_of(items), total, seed_of(seed, soft_count, settings.plain), balanced)]
    segments, start = list[list[Mapping[str, Any]]](), 0
    for tokens in settings.soft_tokens:
        count = prompting.filled(chosen[start:], tokens)
        segments.append(chosen[start : start + count])
        start += count
    for count in settings.soft:
        segments.append(chosen[start : start + count])
        start += count
    plain = settings.plain
    if settings.plain_tokens is not None:
        plain = prompting.filled(chosen[start:], settings.plain_tokens)
    if any(not segment for segment in segments):
        raise UserError("A segment of demonstrations is empty: not even one fits, or there are too few of them.")
    return segments, chosen[start : start + plain]
