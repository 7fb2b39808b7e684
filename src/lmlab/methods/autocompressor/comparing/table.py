"""The table of a comparison: one row for each kind at each ratio, with gain retained, its interval and the control."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmlab.methods.autocompressor.comparing.measure import END_KINDS, Row
from lmlab.stats import Interval, bootstrap, paired_bootstrap

_LEAST_GAIN = 1e-3  # nats: what less than this is a share of says nothing


@dataclass(frozen=True)
class Line:
    """One kind at one ratio on one task.

    Attributes:
        positions: key-value positions of a memory, the mean.
        nll: mean negative log-likelihood of an answer's token.
        accuracy: share of answers whose every token is the likeliest.
        retained: (NLL without - NLL) / (NLL without - NLL with the whole context), with its interval over contexts;
            not-a-number where the context is worth nothing.
        over_random: how much lower its NLL is than that of prune:random at the same ratio, with its interval over
            contexts, paired by question; None where there is no such row.
        over_full: how much higher its NLL is than that of the whole context, in the same way.
        wrong: what is retained of the gain with another context's memory.
        stored, in_use, peak: bytes of one memory.
    """

    task: str
    kind: str
    ratio: float
    positions: float
    nll: float
    accuracy: float
    retained: Interval[float]
    over_random: Interval[float] | None
    over_full: Interval[float]
    wrong: float
    stored: float
    in_use: float
    peak: float
    seconds: float


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """The table, in the order in which kinds were measured.

    Raises:
        ValueError: there are no rows of none and full, which say what a context is worth.
    """
    groups: dict[tuple[str, str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.task, row.kind, row.ratio), []).append(row)
    found = []
    for (task, kind, ratio), group in groups.items():
        ends = {name: groups.get((task, name, 1.0)) for name in END_KINDS}
        if ends["none"] is None or ends["full"] is None:
            raise ValueError("a table needs the kinds none and full")
        random = groups.get((task, "prune:random", ratio)) if kind != "prune:random" else None
        found.append(_line(group, ends["none"], ends["full"], random))
    return found


def _line(group: list[Row], none: list[Row], full: list[Row], random: list[Row] | None) -> Line:
    nll, wrong, without, whole = (
        np.array(each)
        for each in (
            [row.nll for row in group],
            [row.wrong_nll for row in group],
            [row.nll for row in none],
            [row.nll for row in full],
        )
    )
    cases = [row.case for row in group]
    # of a gain that cannot be told from 0 a share is noise; of one context nothing is known of the spread
    gained, _ = paired_bootstrap(whole, without, clusters=cases)
    told = not gained.low <= 0

    def share(of: np.ndarray, picked: np.ndarray) -> float:
        if not told:
            return math.nan
        gain = float((without[picked] - whole[picked]).mean())
        return float((without[picked] - of[picked]).mean()) / gain if abs(gain) > _LEAST_GAIN else math.nan

    def retained(picked: np.ndarray) -> float:
        return share(nll, picked)

    over = None
    if random is not None and [row.question for row in random] == [row.question for row in group]:
        over, _ = paired_bootstrap(nll, [row.nll for row in random], clusters=cases)
    above, _ = paired_bootstrap(whole, nll, clusters=cases)

    def mean(name: str) -> float:
        return float(np.mean([getattr(row, name) for row in group]))

    return Line(
        group[0].task,
        group[0].kind,
        group[0].ratio,
        mean("positions"),
        float(nll.mean()),
        mean("right"),
        bootstrap(retained, len(group), clusters=cases),
        over,
        above,
        share(wrong, np.arange(len(group))),
        mean("stored"),
        mean("in_use"),
        mean("peak"),
        mean("seconds"),
    )


COLUMNS = (
    "task",
    "kind",
    "ratio",
    "positions",
    "NLL",
    "right",
    "gain retained",
    "another's memory",
    "below random",
    "above full",
    "stored",
    "in use",
    "peak",
)


def cells(line: Line) -> list[str]:
    """One line of the table in words."""
    kept, over, above = line.retained, line.over_random, line.over_full
    return [
        line.task,
        line.kind,
        "" if line.kind in END_KINDS else f"{line.ratio:g}",
        f"{line.positions:.0f}",
        f"{line.nll:.3f}",
        f"{line.accuracy:.0%}",
        told(kept),
        "n/a" if math.isnan(line.wrong) else f"{line.wrong:.2f}",
        "" if over is None else told(over),
        "" if line.kind == "full" else told(above),
        *(_size(each) for each in (line.stored, line.in_use, line.peak)),
    ]


def told(found: Interval[float]) -> str:
    """A figure with its interval, as far as they are known."""
    if math.isnan(found.value):
        return "n/a"
    return f"{found.value:.2f}" + ("" if math.isnan(found.low) else f" ({found.low:.2f} to {found.high:.2f})")


def _size(count: float) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
