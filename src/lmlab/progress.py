"""Progress of long work with rate and time left: a live bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from lmlab.terminal import Terminal, printable
from lmlab.words import singular

console = Terminal(stderr=True)

Advance = Callable[..., None]
_LINE_INTERVAL_S = 5.0  # where no bar can be drawn, such as in a log: more lines would drown the rest
_SILENCE_S = 30.0  # after which work that has done nothing more says that it goes on


@contextmanager
def progress(label: str, total: float | None, unit: str, start: float = 0) -> Iterator[Advance]:
    """Show the progress of one piece of work. Work whose first piece, or next one, takes long says that it goes on.

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
        over = threading.Event()
        # A daemon, so that it holds up no end of the process.
        speaker = threading.Thread(target=lines.go_on, args=(over,), name="progress", daemon=True)
        speaker.start()
        try:
            yield lines.advance
        finally:
            over.set()
            speaker.join()  # else its line could come behind the last one
        lines.finish()


@contextmanager
def _bar(label: str, total: float | None, unit: str, start: float) -> Iterator[Advance]:
    columns = (
        TextColumn("  {task.description}", style="bold", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[amount]}", markup=False),
        TextColumn("{task.fields[rate]}", style="cyan", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    pace = Pace(start)
    with Progress(*columns, console=console, transient=True) as bar:
        task: TaskID = bar.add_task(
            printable(label), total=total, completed=int(start), amount="", rate="", left="", note=""
        )

        def advance(amount: float = 1, note: str = "") -> None:
            pace.advance(amount, time.monotonic())
            left = pace.left(total)
            bar.update(
                task,
                completed=pace.done,
                amount=_amount(pace.done, total, unit),
                rate=f"{short(pace.rate)} {unit}/s",
                left="" if left is None else f"{duration(left)} left",
                note=printable(note),
            )

        yield advance


class Pace:
    """How fast work goes on, and how long it will take.

    The first piece does not count: it holds what is done once, such as loading and compiling. Nothing is foretold
    before three pieces and five seconds after it, unless a tenth of the work is done.

    Arguments:
        start: amount that was done before.

    Attributes:
        done: amount that is done.
        rate: of it in a second; before a second piece that of the first.
    """

    def __init__(self, start: float = 0) -> None:
        self.done, self.rate = start, 0.0
        self._start, self._began = start, time.monotonic()
        self._pieces, self._first, self._ended = 0, start, self._began
        self._spent = 0.0

    def advance(self, amount: float, now: float) -> None:
        """So much more is done, at this time (`time.monotonic`)."""
        self.done += amount
        self._pieces += 1
        if self._pieces == 1:
            self._first, self._ended = self.done, now
            self.rate = (self.done - self._start) / max(now - self._began, 1e-9)
        else:
            self._spent = now - self._ended
            self.rate = (self.done - self._first) / max(self._spent, 1e-9)

    def left(self, total: float | None) -> float | None:
        """Seconds that the rest will take; None if nobody can tell yet."""
        if not total or self.rate <= 0 or self._pieces < 2:
            return None
        # of fewer pieces or seconds the rate jumps, and an estimate would mislead
        sure = (self._pieces > 3 and self._spent >= 5) or self.done - self._start >= (total - self._start) / 10
        return max(total - self.done, 0) / self.rate if sure else None


class _Lines:
    def __init__(self, label: str, total: float | None, unit: str, start: float) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.pace = Pace(start)
        self.began = self.printed = time.monotonic()
        self.any = False

    def advance(self, amount: float = 1, note: str = "") -> None:
        now = time.monotonic()
        self.pace.advance(amount, now)
        if now - self.printed >= _LINE_INTERVAL_S and not console.quiet:
            self.printed = now
            self.any = True
            seconds = self.pace.left(self.total)
            left = "" if seconds is None else f", {duration(seconds)} left"
            amount_done = _amount(self.pace.done, self.total, self.unit)
            text = f"  {self.label}: {amount_done}, {short(self.pace.rate)} {self.unit}/s{left}"
            print(printable(f"{text}{'  ' + note if note else ''}"), file=sys.stderr, flush=True)

    def go_on(self, over: threading.Event) -> None:
        """Say what is done where no piece was done for long: first soon, then rarely."""
        wait = _LINE_INTERVAL_S
        while not over.wait(max(0.05, self.printed + wait - time.monotonic())):
            if time.monotonic() - self.printed < wait or console.quiet:
                continue
            self.any, self.printed, wait = True, time.monotonic(), _SILENCE_S
            spent = duration(self.printed - self.began)
            text = f"  {self.label}: {_amount(self.pace.done, self.total, self.unit)} after {spent}"
            print(printable(text), file=sys.stderr, flush=True)

    def finish(self) -> None:
        if self.any:
            elapsed = time.monotonic() - self.began
            print(
                f"  {self.label}: {_amount(self.pace.done, None, self.unit)} in {duration(elapsed)}",
                file=sys.stderr,
                flush=True,
            )


def _amount(done: float, total: float | None, unit: str) -> str:
    if total:
        return f"{short(done)}/{short(total)} {unit}"
    return f"{short(done)} {singular(unit) if done == 1 else unit}"


def short(value: float) -> str:
    """A number for people: 950, 12.3k, 4.56M, 7.8G, 1.2T; from 10^18 on with an exponent, 7e+21."""
    rounded = float(f"{value:.3g}")  # first, so that 999,900 is 1M: rounding may reach the next unit
    for limit, suffix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if limit <= abs(rounded) < 1e18:
            return f"{rounded / limit:.3g}{suffix}"
    return f"{rounded:.3g}"


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
