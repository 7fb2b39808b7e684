"""Whether the documents that an answer cites bear out what they are cited for: citation recall and precision, as ALCE
defines them (Gao et al. 2023, "Enabling Large Language Models to Generate Text with Citations", section 3).

A statement counts as recalled if all documents that it cites bear it out together. A citation counts as precise if its
statement is recalled, and if the document bears it out alone or the others do not without it. An answer gets the share
of its statements, and of its citations. Who decides is asked about pairs of a text and a claim, in three rounds: about
all documents of each statement, about each of several, and about the others without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from lmlab.errors import UserError
from lmlab.evals.long import metrics
from lmlab.evals.rows import Row, RowFile
from lmlab.files import sha256_json
from lmlab.judging import AnswerItem, AnswerJudge
from lmlab.judging.offline.nli import OnnxNli
from lmlab.judging.offline.scorers import PointJudge
from lmlab.judging.offline.sentences import sentences

Pair = tuple[str, str]
"""A text, and a claim that it may bear out."""
Decide = Callable[[Sequence[Pair]], Sequence[bool | None]]
"""Which claims are borne out; None where that could not be found."""

DECISIONS = "decisions.jsonl"
_AT_ONCE = 16  # pairs between two times that decisions are written
_MOST = 3  # documents of a statement that count, the first ones, as in HELMET
_SHORTEST = 5  # characters of a statement: "1." is none
_STOP_BEFORE_MARKS = re.compile(r"([.!?]+)\s*((?:\s*\[[\d,; ]+\])+)")
_COMMA = re.compile(r",(?![^\[\]]*\])")  # none of those within marks


@dataclass(frozen=True)
class Statement:
    """A sentence of an answer, or an entry of its list.

    Attributes:
        text: without its marks.
        cited: the documents that count, as text; empty where it cites none, or one that was not shown.
    """

    text: str
    cited: tuple[str, ...]


@dataclass(frozen=True)
class Borne:
    """How far an answer's citations hold; None where a decision is missing that it needs."""

    recall: float | None
    precision: float | None


def statements_of(row: Row) -> list[Statement]:
    """The statements of an answer, with what each cites. Entries of a list are read as answers to the question."""
    written = str(row["read"])
    if row["name"] == "alce_qampari":
        question = str(row["question"]).removeprefix("Question: ")
        parts = [f"{question} {each.strip()}" for each in _COMMA.split(written.rstrip(" .,")) if each.strip()]
    else:  # marks behind a full stop belong to the sentence before it
        parts = [each for each in sentences(_STOP_BEFORE_MARKS.sub(r"\2\1", written)) if len(each) >= _SHORTEST]
    return [_statement(each, row["cited"]) for each in parts]


def _statement(text: str, shown: dict[str, str]) -> Statement:
    numbers = [str(number) for number in metrics.citations(text)]
    known = all(number in shown for number in numbers)
    return Statement(
        " ".join(metrics.without_citations(text).split()),
        tuple(shown[number] for number in dict.fromkeys(numbers[:_MOST])) if known else (),
    )


def borne_out(answers: Sequence[Sequence[Statement]], decide: Decide) -> list[Borne]:
    """Recall and precision of the citations of each answer; of an answer without a statement both are 0."""
    joint = _Asked(decide, [(_joined(each.cited), each.text) for answer in answers for each in answer if each.cited])
    several = [each for answer in answers for each in answer if len(each.cited) > 1 and joint(each)]
    alone = _Asked(decide, [(document, each.text) for each in several for document in each.cited])
    rest = _Asked(
        decide,
        [
            (_joined(_without(each.cited, document)), each.text)
            for each in several
            for document in each.cited
            if alone.found[document, each.text] is False
        ],
    )

    def precise(each: Statement) -> list[bool | None]:
        if len(each.cited) < 2 or not (whole := joint(each)):
            return [joint(each)] * len(each.cited)
        found: list[bool | None] = []
        for document in each.cited:
            needed = alone.found[document, each.text]
            if needed is False:
                others = rest.found[_joined(_without(each.cited, document)), each.text]
                needed = None if others is None else not others
            found.append(needed and whole)
        return found

    return [
        Borne(
            _share([joint(each) if each.cited else False for each in answer]),
            _share([held for each in answer for held in precise(each)]),
        )
        for answer in answers
    ]


class _Asked:
    """Decisions about different pairs, each asked for once."""

    def __init__(self, decide: Decide, pairs: Sequence[Pair]) -> None:
        asked = list(dict.fromkeys(pairs))
        self.found = dict(zip(asked, decide(asked) if asked else [], strict=True))

    def __call__(self, statement: Statement) -> bool | None:
        return self.found[_joined(statement.cited), statement.text] if statement.cited else False


def _joined(documents: Sequence[str]) -> str:
    return "\n".join(documents)


def _without(documents: Sequence[str], one: str) -> list[str]:
    return [each for each in documents if each != one]


def _share(held: Sequence[bool | None]) -> float | None:
    if None in held:
        return None
    return sum(map(bool, held)) / len(held) if held else 0.0


def most_pairs(answers: Sequence[Sequence[Statement]]) -> list[Pair]:
    """All pairs that could come to be asked about, for an estimate of the cost."""
    found: dict[Pair, None] = {}
    for each in (statement for answer in answers for statement in answer if statement.cited):
        found[_joined(each.cited), each.text] = None
        if len(each.cited) > 1:
            for document in each.cited:
                found[document, each.text] = found[_joined(_without(each.cited, document)), each.text] = None
    return list(found)


def classifier_of(judge: AnswerJudge) -> OnnxNli:
    """The classifier of entailment that a judge is which nobody is asked by.

    Raises:
        UserError: it is another one, which cannot tell whether a text bears out a claim.
    """
    (scorer, *others) = judge.scorers if isinstance(judge, PointJudge) else [None]
    if others or not isinstance(scorer, OnnxNli) or scorer.support is None:
        raise UserError(
            f"The judge '{judge.name}' does not tell whether a document bears out a statement.",
            "Citations need a classifier of entailment of your own (--judge onnx-nli:FILE) or a model that is asked.",
        )
    return scorer


def kept_decisions(
    classifier: OnnxNli, pairs: Sequence[Pair], place: Path, advance: Callable[[int], None]
) -> list[bool]:
    """Whether each text bears out its claim, by a classifier whose decisions are kept in `place`: what it has decided
    before, on the same files, is not decided again.

    Raises:
        UserError: another process writes there.
    """
    file = RowFile(place / DECISIONS)
    ids = [sha256_json([classifier.fingerprint, *pair]) for pair in pairs]
    known = {id: bool(row["borne_out"]) for id, row in file.done().items()}
    missing = {id: pair for id, pair in zip(ids, pairs, strict=True) if id not in known}
    advance(len(pairs) - len(missing))
    todo = list(missing.items())
    with closing(file):
        for start in range(0, len(todo), _AT_ONCE):
            some = todo[start : start + _AT_ONCE]
            for (id, _), held in zip(some, classifier.entails([pair for _, pair in some]), strict=True):
                file.append({"id": id, "borne_out": held})
                known[id] = held
            advance(len(some))
    return [known[id] for id in ids]


def pair_item(pair: Pair) -> AnswerItem:
    """A pair as a judge that is asked sees it: does the text make the claim?"""
    text, claim = pair
    return AnswerItem(id="", question="Documents, cited for a claim.", answer=text, key_points=(claim,))
