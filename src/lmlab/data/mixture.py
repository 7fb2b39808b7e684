"""Mixtures: rows of several sources in given shares, as one fixed sequence.

Which source row n comes from, and which of its rows it is, depends on n alone, so that the sequence is the same for any
number of processes and after any interruption. The sources alternate as Grain's mixtures do: at every moment each has
had its share to within a row. Each is shuffled afresh in every epoch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from lmlab.config import Config
from lmlab.data.packing import Row, RowSource
from lmlab.errors import UserError

_SOURCE_BITS = 40  # below, a count of up to 2**39 rows; above, up to 2**23 sources


SHARES_TOLERANCE = 1e-6
"""How far shares may be from adding up to 1."""


class MixtureSource(Config):
    """One source's part.

    Attributes:
        weight: its share, relative to those of the others: shares that add up to 1, or numbers such as 2 and 1.
        token_budget: how many of its tokens are used, in place of a weight; all sources have one or the other, and the
            budgets add up to the training's length, to within 1 %.
        max_epochs: how often its text may be gone through; up to 4 times, repeated text is nearly as good as new
            (Muennighoff et al. 2023).
        allow_repeats: go through it as often as its share needs, beyond `max_epochs`.
        domains: of the corpus, use only these.
    """

    weight: PositiveFloat | None = None
    token_budget: PositiveInt | None = None
    max_epochs: PositiveFloat = 4.0
    allow_repeats: bool = False
    domains: tuple[str, ...] | None = None


class Phase(Config):
    """A stretch of a curriculum.

    Attributes:
        until: its end, as a share of the training.
        weights: shares of the sources in it; those that are not named have none.
    """

    until: float = Field(gt=0, le=1)
    weights: dict[str, PositiveFloat] = Field(min_length=1)


class MixtureOrder(Config):
    """How sources follow each other.

    Attributes:
        order: `shuffled` mixes all sources, shuffled; `sequential` takes them one after the other, each in its own
            order.
        phases: other weights in other stretches of the training.
    """

    order: Literal["shuffled", "sequential"] = "shuffled"
    phases: tuple[Phase, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> MixtureOrder:
        ends = [phase.until for phase in self.phases]
        if ends and (ends[-1] != 1.0 or ends != sorted(set(ends))):
            raise ValueError("the phases must end at rising shares of the training, the last at 1.")
        if ends and self.order == "sequential":
            raise ValueError("phases belong to the order shuffled.")
        for number, phase in enumerate(self.phases):
            check_shares(phase.weights, f"phase {number}: ")
        return self


def check_shares(weights: Mapping[str, float | None], where: str = "") -> None:
    """Refuse weights that look like shares, as all of several are below 1, and do not add up to 1: whoever leaves a
    source out or mistypes a share would train on another mixture than the one that is written.

    Raises:
        ValueError: they do not; the message has their sum.
    """
    values = [value for value in weights.values() if value is not None]
    if len(values) < 2 or any(value >= 1 for value in values):
        return  # ratios, such as 2 and 1
    total = math.fsum(values)
    if abs(total - 1) > SHARES_TOLERANCE:
        raise ValueError(
            f"{where}the shares of {', '.join(weights)} add up to {total:.9g}, not to 1. Change them so that they do,"
            " or write ratios, one of them at least 1 (2 and 1 for two thirds and one third)."
        )


@dataclass(frozen=True)
class Share:
    """What a source gives.

    Attributes:
        share: of all rows.
        epochs: how often its rows are gone through.
    """

    name: str
    rows: int
    tokens: int
    share: float
    epochs: float


@dataclass(frozen=True)
class _Stretch:
    """Rows `start` to `end`, drawn by Grain's mix of numbers, and how many rows each source had given before."""

    start: int
    end: int
    sources: Sequence[int]
    weights: Sequence[float]
    drawn: Any
    before: Sequence[int]


class Mixture:
    """A sequence of `num_rows` rows from several sources.

    Arguments:
        rows: the packed rows of each source, by name.
        sources: their parts, by the same names.
        num_rows: rows of the whole training.
        seed: of the order.
        order: see `MixtureOrder`.

    Attributes:
        domains: names of all domains; `domain_ids` of rows are numbers in it.

    Raises:
        UserError: a source would be repeated too often, weights and budgets are mixed (the message names the source),
            or shares do not add up to 1, or budgets to the length of the training.
    """

    def __init__(
        self,
        rows: Mapping[str, RowSource],
        sources: Mapping[str, MixtureSource],
        num_rows: int,
        seed: int,
        order: MixtureOrder | None = None,
    ) -> None:
        order = order or MixtureOrder()
        self.names, self._num_rows = list(rows), num_rows
        self._rows = list(rows.values())
        self.seq_len = self._rows[0].seq_len
        self.domains = sorted({domain for each in self._rows for domain in each.domains})
        self._numbers = [np.array([self.domains.index(domain) for domain in each.domains]) for each in self._rows]
        self._sources, self._order = [sources[name] for name in self.names], order
        _check_budgets(self._sources, order, num_rows, self.seq_len)
        self._stretches = self._plan(num_rows)
        self._counts = [self._given(self._stretches[-1], number, num_rows) for number in range(len(self.names))]
        self._refuse_repeats(sources)
        self._sequences = [_sequence(each, seed + number, order.order) for number, each in enumerate(self._rows)]

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, index: int) -> Row:
        source, number = self.locate(index)
        row = self._sequences[source][number]
        return {**row, "domain_ids": self._numbers[source][row["domain_ids"]]}

    def locate(self, index: int) -> tuple[int, int]:
        """The number of the source of a row, and which of its rows it is, counted on through its epochs."""
        if not 0 <= index < self._num_rows:
            raise IndexError(index)
        stretch = next(each for each in self._stretches if index < each.end)
        return _draw(stretch, index - stretch.start)

    def begins_as(self, num_rows: int, count: int) -> bool:
        """Whether the first `count` rows would be the same in a mixture of `num_rows` rows."""

        def begun(stretches: list[_Stretch]) -> list[Any]:
            return [
                (each.start, min(each.end, count), each.sources, each.weights)
                for each in stretches
                if each.start < count
            ]

        return begun(self._stretches) == begun(self._plan(num_rows))

    def plan(self) -> list[Share]:
        """What each source gives, in order."""
        parts = zip(self.names, self._rows, self._counts, strict=True)
        return [
            Share(name, count, count * self.seq_len, count / self._num_rows, count / len(rows))
            for name, rows, count in parts
        ]

    def _plan(self, num_rows: int) -> list[_Stretch]:
        sources, order = self._sources, self._order
        weights = _weights(self.names, sources, self.seq_len)
        everyone = range(len(sources))
        if order.order == "sequential":
            ends = np.round(np.cumsum(weights) * num_rows).astype(int).tolist()
            parts = [(end, {number: 1.0}) for number, end in zip(everyone, ends, strict=True)]
        elif order.phases:
            for phase in order.phases:
                for name in phase.weights.keys() - set(self.names):
                    raise UserError(
                        f"mixture: a phase names '{name}', which is no source.",
                        f"The sources are {', '.join(self.names)}.",
                    )
            parts = [
                (
                    round(phase.until * num_rows),
                    {self.names.index(name): weight for name, weight in phase.weights.items()},
                )
                for phase in order.phases
            ]
        else:
            parts = [(num_rows, dict(zip(everyone, weights, strict=True)))]
        stretches: list[_Stretch] = []
        start, before = 0, [0] * len(sources)
        for end, shares in parts:
            if end > start:
                names, parts_of = list(shares), list(shares.values())
                stretch = _Stretch(start, end, names, parts_of, _alternate(names, parts_of), before)
                stretches.append(stretch)
                before = [self._given(stretch, number, end) for number in everyone]
                start = end
        return stretches

    def _given(self, stretch: _Stretch, source: int, end: int) -> int:
        """How many rows a source has given by row `end` of a stretch."""
        if source not in stretch.sources:
            return stretch.before[source]
        for index in range(end - stretch.start - 1, -1, -1):
            found, number = _draw(stretch, index)
            if found == source:
                return number + 1
        return stretch.before[source]

    def _refuse_repeats(self, sources: Mapping[str, MixtureSource]) -> None:
        for share in self.plan():
            limit = sources[share.name].max_epochs
            if share.epochs > limit + 1e-9 and not sources[share.name].allow_repeats:  # rounding must not refuse
                raise UserError(
                    f"The source '{share.name}' would be gone through {share.epochs:.2f} times; its limit is {limit:g}"
                    " (max_epochs).",
                    "Lower its share or the length of the training, add text, raise max_epochs, or set allow_repeats.",
                )


def _weights(names: Sequence[str], sources: Sequence[MixtureSource], seq_len: int) -> list[float]:
    for name, source in zip(names, sources, strict=True):
        if (source.weight is None) == (source.token_budget is None):
            raise UserError(f"mixture: the source '{name}' needs either weight or token_budget.")
    values = [source.weight or float(source.token_budget or 0) for source in sources]
    if len({source.weight is None for source in sources}) > 1:
        raise UserError(
            "mixture: some sources have a weight and others a token_budget.", "Give all of them the same kind."
        )
    try:
        check_shares(dict(zip(names, (source.weight for source in sources), strict=True)))
    except ValueError as error:
        raise UserError(f"mixture: {error}") from None
    return [value / sum(values) for value in values]


def _check_budgets(sources: Sequence[MixtureSource], order: MixtureOrder, num_rows: int, seq_len: int) -> None:
    """Budgets are amounts: a training of another length would make shares of them.

    Raises:
        UserError: they do not add up to the length, or phases set other shares.
    """
    if not sources or any(source.token_budget is None for source in sources):
        return
    if order.phases:
        raise UserError("mixture: token_budget and phases exclude each other.", "Give the sources weights.")
    total, length = sum(source.token_budget or 0 for source in sources), num_rows * seq_len
    # a training is whole batches of whole rows, so that it cannot meet a number to the token
    if abs(total - length) > 0.01 * length + seq_len * len(sources):
        raise UserError(
            f"mixture: the token budgets add up to {total:,} tokens, but the training reads {length:,}.",
            f"Set trainer.tokens to {total}, or give the sources weights.",
        )


def _draw(stretch: _Stretch, index: int) -> tuple[int, int]:
    drawn = int(stretch.drawn[index])
    source = stretch.sources[drawn >> _SOURCE_BITS]
    return source, stretch.before[source] + (drawn & ((1 << _SOURCE_BITS) - 1))


def _grain() -> Any:
    logging.getLogger("absl").setLevel(logging.ERROR)  # Grain's import warns about optional profilers
    import grain

    return grain


def _alternate(sources: Sequence[int], weights: Sequence[float]) -> Any:
    """An endless sequence of numbers that hold a source (its place in `sources`) above and a count below."""
    dataset = _grain().MapDataset
    counters = [
        dataset.range(place << _SOURCE_BITS, (place << _SOURCE_BITS) + (1 << _SOURCE_BITS - 1))
        for place in range(len(sources))
    ]
    return counters[0] if len(counters) == 1 else dataset.mix(counters, weights)


def _sequence(rows: RowSource, seed: int, order: str) -> Any:
    source = _grain().MapDataset.source(rows).seed(seed)
    return (source.shuffle() if order == "shuffled" else source).repeat()
