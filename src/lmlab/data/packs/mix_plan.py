"""What a mixture of streams would read, before anything is trained: how many long documents each stream has, and how
often it would be gone through.

A stream is written `PATH@0.3` (its share of all tokens), `PATH#2.5` (how often it is gone through), or `PATH` (once);
so the public code of ProLong writes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmlab.data.mixture import SHARES_TOLERANCE
from lmlab.data.packs.read import TokenSource
from lmlab.errors import UserError

_REPEATS = 4.0  # beyond, repeated text is worth much less than new (Muennighoff et al. 2023)


@dataclass(frozen=True)
class Stream:
    """One stream as it is asked for.

    Attributes:
        share: of all tokens; None where the stream is gone through `repeat` times.
    """

    path: str
    share: float | None = None
    repeat: float = 1.0


@dataclass(frozen=True)
class StreamPlan:
    """What a stream has and gives.

    Attributes:
        documents, tokens: that it has.
        longer: length -> the tokens of its documents of at least so many tokens.
        share: of all tokens that are read.
        reads: tokens that are read of it.
        epochs: how often it is gone through.
        warning: what a user should know before the run; empty if nothing.
    """

    path: str
    documents: int
    tokens: int
    longer: Mapping[int, int]
    share: float
    reads: int
    epochs: float
    warning: str = ""


def parse_stream(text: str) -> Stream:
    """A stream of `PATH@SHARE`, `PATH#REPEAT` or `PATH`.

    Raises:
        UserError: the number is none, or not above 0.
    """
    for mark, name in (("@", "share"), ("#", "repeat")):
        path, found, number = text.rpartition(mark)
        if not found or "/" in number:
            continue
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf or (name == "share" and value > 1):
            raise UserError(
                f"'{text}': {number!r} is no {name}.", "Write PATH@0.3 for a share, or PATH#2.5 for repeats."
            )
        return Stream(path, value) if name == "share" else Stream(path, repeat=value)
    return Stream(text)


def plan_mix(streams: Sequence[Stream], lengths: Iterable[int], tokens: int | None = None) -> list[StreamPlan]:
    """Count the documents of every stream, and plan what is read of it.

    Arguments:
        lengths: from which documents are counted as long.
        tokens: of the whole training; needed where streams have shares, else given by how often they are gone through.

    Raises:
        UserError: some streams have shares and others none, shares do not add up to 1, a stream is empty, or the length
            of the training is missing.
    """
    marks = sorted(set(lengths))
    shared = [stream.share is not None for stream in streams]
    if any(shared) and not all(shared):
        raise UserError("Some streams have a share (@) and others none.", "Give all of them one, or none.")
    if all(shared) and abs((total := math.fsum(stream.share or 0 for stream in streams)) - 1) > SHARES_TOLERANCE:
        raise UserError(f"The shares of the streams add up to {total:g}, not to 1.", "Change them so that they do.")
    if all(shared) and tokens is None:
        raise UserError("Shares need the length of the training.", "Give --tokens.")
    counted = [_count(stream, marks) for stream in streams]
    if all(shared):
        assert tokens is not None
        reads = largest_remainder([stream.share or 0 for stream in streams], tokens)
    else:
        reads = [round(stream.repeat * has) for stream, (_, has, _) in zip(streams, counted, strict=True)]
    if not sum(reads):
        raise UserError("Nothing would be read of any stream.", "Raise their repeats, or --tokens.")
    plans = []
    for stream, (documents, has, longer), read in zip(streams, counted, reads, strict=True):
        epochs = read / has
        warning = f"gone through {epochs:.1f} times; more than {_REPEATS:g} teach little" if epochs > _REPEATS else ""
        plans.append(StreamPlan(stream.path, documents, has, longer, read / sum(reads), read, epochs, warning))
    return plans


def largest_remainder(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers that add up to `total`, each its share of it to within one (Hamilton's method)."""
    exact = [share * total / math.fsum(shares) for share in shares]
    whole = [math.floor(each) for each in exact]
    order = sorted(range(len(shares)), key=lambda number: whole[number] - exact[number])
    for number in order[: total - sum(whole)]:
        whole[number] += 1
    return whole


def _count(stream: Stream, marks: Sequence[int]) -> tuple[int, int, dict[int, int]]:
    documents = tokens = 0
    longer = dict.fromkeys(marks, 0)
    for _, size in TokenSource(stream.path).lengths():
        documents += 1
        tokens += size
        for mark in marks:
            if size < mark:
                break
            longer[mark] += size
    if not tokens:
        raise UserError(f"The stream '{stream.path}' is empty.", "Leave it out, or tokenize its text.")
    return documents, tokens, longer


def plan_rows(plans: Sequence[StreamPlan]) -> tuple[list[str], list[list[Any]]]:
    """The plan as a table: its heading and rows."""
    marks = list(plans[0].longer) if plans else []
    heading = ["stream", "documents", "tokens", *(f"tokens in documents of {mark:,} or more" for mark in marks)]
    rows = [
        [
            plan.path,
            plan.documents,
            plan.tokens,
            *plan.longer.values(),
            plan.reads,
            f"{plan.share:.2%}",
            f"{plan.epochs:.2f}",
            plan.warning,
        ]
        for plan in plans
    ]
    return [*heading, "reads", "share", "epochs", "note"], rows
