"""Figures in few digits, and nothing where there is none."""

from __future__ import annotations

_PLAIN = 10.0  # ratios up to this are told in percent


def percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 1)


def four_digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def share(value: float | None) -> float | None:
    return None if value is None else 100 * value


def share_text(ratio: float, digits: int = 0) -> str:
    """A share in percent, and where it is ten times or more in few digits whatever it is: `60%`, `3e+20 times`."""
    return f"{ratio:.{digits}%}" if ratio < _PLAIN else f"{ratio:.3g} times"


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def level_text(level: float) -> str:
    """The level of an interval in percent, never rounded to all: 90%, 99.5%, 99.9999%."""
    return f"{100 * level:.8g}%"
