"""Stopping on request: the first Ctrl-C or SIGTERM is remembered and obeyed at the next safe point, the second stops at
once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """What was being done within `StopRequest.at_once` has been given up."""


class StopRequest:
    """A context in which signals set `requested` rather than raise.

    Outside the main thread it does nothing; signals that are ignored stay so.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._raises = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            heeded = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it a request raises `Stopped`: for long work that changes nothing and can be begun again."""
        if self.requested is not None:
            raise Stopped
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number)
        if self._raises:
            raise Stopped
