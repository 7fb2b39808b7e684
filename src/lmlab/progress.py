"""Progress of long work with rate and time left: a live bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lmlab.terminal import Terminal, printable

console = Terminal(stderr=True)

Advance = Callable[..., None]
_LINE_INTERVAL_S = 5.0


@contextmanager
def progress(label: str, total: float | None, unit: str, start: float = 0) -> Iterator[Advance]:
    """Show the progress of one piece of work.

    Arguments:
        label: what is being done, for instance "tokenize".
        total: amount of work in `unit`s, None if unknown.
        unit: what is counted, for instance "documents".
        start: amount already done before (resumed work); it does not count for the rate.

    Yields:
        `advance(amount, note="")`, to be called as work is done.
    """
    if console.is_terminal:
        with _bar(label, total, unit, start) as advance:
            yield advance
    else:
        lines = _Lines(label, total, unit, start)
        yield lines.advance
        lines.finish()


@contextmanager
def _bar(label: str, total: float | None, unit: str, start: float) -> Iterator[Advance]:
    columns = (
        TextColumn("  {task.description}", style="bold", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[amount]}", markup=False),
        TextColumn("{task.fields[rate]}", style="cyan", markup=False),
        TimeElapsedColumn(),
        TextColumn("left", markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    began = time.monotonic()
    with Progress(*columns, console=console, transient=True) as bar:
        task: TaskID = bar.add_task(printable(label), total=total, completed=int(start), amount="", rate="", note="")
        done = start

        def advance(amount: float = 1, note: str = "") -> None:
            nonlocal done
            done += amount
            rate = (done - start) / max(time.monotonic() - began, 1e-9)
            bar.update(
                task,
                completed=done,
                amount=_amount(done, total, unit),
                rate=f"{short(rate)} {unit}/s",
                note=printable(note),
            )

        yield advance


class _Lines:
    def __init__(self, label: str, total: float | None, unit: str, start: float) -> None:
        self.label, self.total, self.unit, self.start = label, total, unit, start
        self.done = start
        self.began = self.printed = time.monotonic()
        self.any = False

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.printed >= _LINE_INTERVAL_S and not console.quiet:
            self.printed = now
            self.any = True
            rate = (self.done - self.start) / max(now - self.began, 1e-9)
            left = f", {duration((self.total - self.done) / rate)} left" if self.total and rate > 0 else ""
            text = f"  {self.label}: {_amount(self.done, self.total, self.unit)}, {short(rate)} {self.unit}/s{left}"
            print(printable(f"{text}{'  ' + note if note else ''}"), file=sys.stderr, flush=True)

    def finish(self) -> None:
        if self.any:
            elapsed = time.monotonic() - self.began
            print(f"  {self.label}: {short(self.done)} {self.unit} in {duration(elapsed)}", file=sys.stderr, flush=True)


def _amount(done: float, total: float | None, unit: str) -> str:
    return f"{short(done)}/{short(total)} {unit}" if total else f"{short(done)} {unit}"


def short(value: float) -> str:
    """A number for people: 950, 12.3k, 4.56M, 7.8G, 1.2T."""
    for limit, suffix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


def with_unit(value: float, unit: str) -> str:
    """A quantity for people: 397 kB, 47.6 GFLOP/s, 12 B."""
    number = short(value)
    suffix = number[-1] if number[-1].isalpha() and math.isfinite(value) else ""
    return f"{number.removesuffix(suffix)} {suffix}{unit}"


def duration(seconds: float) -> str:
    """A duration for people: 0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
