"""How well answers are known from memories: their negative log-likelihood, with the context's own memory and with that
of another context.

Shapes: Q questions about a context, T tokens of a question and its answer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from lmlab.methods.autocompressor.comparing.accounting import PeakBytes, bytes_in_use, stored_bytes
from lmlab.methods.autocompressor.comparing.cases import Case, Question
from lmlab.methods.autocompressor.kinds.base import Compressor
from lmlab.models import Memory, Transformer

END_KINDS = ("none", "full")
"""Kinds for which a ratio means nothing."""


@dataclass(frozen=True)
class Row:
    """One question, answered from one memory.

    Attributes:
        nll: mean negative log-likelihood of the answer's tokens, in nats.
        right: each token of the answer is the likeliest one.
        wrong_nll: the same with another context's memory.
        positions: key-value positions that the memory takes, as the mean over layers and heads.
        stored, in_use: bytes of the memory, in its file and once it is read.
        peak, seconds: of compressing a context of that length that nothing has read before; the peak is of all tensors
            that are made for it.
    """

    task: str
    case: str
    question: int
    kind: str
    ratio: float
    nll: float
    right: bool
    wrong_nll: float
    positions: float
    stored: int
    in_use: int
    peak: int
    seconds: float

    def record(self) -> dict[str, object]:
        """As one line of a file."""
        return asdict(self)


Memories = dict[tuple[str, float], Memory]
Costs = dict[str, tuple[int, float]]


def measure(
    compressors: dict[str, Compressor],
    cases: Sequence[Case],
    ratios: Sequence[float],
    aware: bool,
    done: Collection[str] = (),
) -> Iterator[list[Row]]:
    """All kinds at all ratios on all cases, one case after the other. The control is the memory of the case before it
    of the same task; that of the first is the last one's.

    Arguments:
        aware: compress once for each question, with the question shown.
        done: names of cases that are left out.

    Yields:
        the rows of each case.
    """
    by_task: dict[str, list[Case]] = {}
    for case in cases:
        by_task.setdefault(case.task, []).append(case)
    by_length: dict[int, Costs] = {}  # what is read is all that either depends on
    for group in by_task.values():
        left = [number for number, case in enumerate(group) if case.name not in done]
        if left and group[0].length not in by_length:
            by_length[group[0].length] = _costs(compressors, group[0], min(ratios))
        costs = by_length.get(group[0].length, {})
        made: dict[int, Memories] = {}
        for number in left:
            before = (number - 1) % len(group)
            for each in (before, number):
                if each not in made:
                    made[each] = _memories(compressors, group[each], ratios)
            yield list(_rows(compressors, group[number], made[number], made[before], costs, aware))
            made = {number: made[number]}


def _costs(compressors: dict[str, Compressor], case: Case, ratio: float) -> Costs:
    """The peak in bytes and the seconds of compressing a context that nothing has read before. Hardly anything of
    either depends on the ratio: the peak is that of reading the context.
    """
    found = {}
    for kind, compressor in compressors.items():
        compressor.forget()
        began = time.perf_counter()
        with PeakBytes() as peak:
            compressor.compress(torch.tensor([case.context]), ratio=ratio)
        found[kind] = (peak.peak, time.perf_counter() - began)
    return found


def _memories(compressors: dict[str, Compressor], case: Case, ratios: Sequence[float]) -> Memories:
    return {
        (kind, ratio): compressor.compress(torch.tensor([case.context]), ratio=ratio)
        for kind, compressor in compressors.items()
        for ratio in ((1.0,) if kind in END_KINDS else ratios)
    }


def _rows(
    compressors: dict[str, Compressor], case: Case, made: Memories, others: Memories, costs: Costs, aware: bool
) -> Iterator[Row]:
    for (kind, ratio), memory in made.items():
        compressor = compressors[kind]
        model = compressor.model
        if aware and kind not in END_KINDS:
            own = [
                answer_nll(model, _shown(compressor, case, question, ratio), [question])[0]
                for question in case.questions
            ]
        else:
            own = answer_nll(model, memory, case.questions)
        wrong = answer_nll(model, others[kind, ratio], case.questions)
        peak, seconds = costs[kind]
        for number, ((nll, right), (wrong_nll, _)) in enumerate(zip(own, wrong, strict=True)):
            yield Row(
                case.task,
                case.name,
                number,
                kind,
                ratio,
                nll,
                right,
                wrong_nll,
                float(memory.slots_B.mean()),
                stored_bytes(memory),
                bytes_in_use(memory, model),
                peak,
                seconds,
            )


def _shown(compressor: Compressor, case: Case, question: Question, ratio: float) -> Memory:
    return compressor.compress(torch.tensor([case.context]), query_BQ=torch.tensor([question.ids]), ratio=ratio)


@torch.no_grad()
def answer_nll(model: Transformer, memory: Memory, questions: Iterable[Question]) -> list[tuple[float, bool]]:
    """For each question the mean negative log-likelihood of its answer's tokens, and whether each is the likeliest."""
    rows = list(questions)
    device = model.embedding.weight.device
    longest = max(len(each.ids) + len(each.answer) for each in rows)
    ids_QT = torch.zeros(len(rows), longest, dtype=torch.long)
    valid_QT = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, each in enumerate(rows):
        text = torch.tensor([*each.ids, *each.answer])
        ids_QT[number, longest - len(text) :], valid_QT[number, longest - len(text) :] = text, True
    ids_QT, valid_QT = ids_QT.to(device), valid_QT.to(device)
    hidden_QTD = model(
        ids_QT, attention_mask_BT=None if bool(valid_QT.all()) else valid_QT, memory=memory, logits="none"
    ).hidden_BTD
    found = []
    for number, each in enumerate(rows):
        size = len(each.answer)
        log_probs: Tensor = model.logits_of(hidden_QTD[number, -size - 1 : -1]).float().log_softmax(-1)
        expected = ids_QT[number, -size:]
        nll = -float(log_probs.gather(1, expected[:, None]).mean())
        assert not math.isnan(nll)
        found.append((nll, bool((log_probs.argmax(-1) == expected).all())))
    return found
