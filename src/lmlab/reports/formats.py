"""Numbers, sizes and durations as a reader wants to see them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

SIGNIFICANT_DIGITS = 4  # what most measurements here can tell apart, and what a table has room for
MAX_DECIMALS = 6  # longer numbers are easier to read in scientific notation
ROUNDING = 1e-6  # share of a figure that single precision does not hold
_BINARY_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def format_number(value: float) -> str:
    """Write a number with thousands separators and four significant digits.

    Whole numbers of type `int` keep all their digits. Floats lose trailing zeros, keep all digits before the decimal
    point, and turn to scientific notation below 0.0001 and from 1e15: 1234567 -> "1,234,567", 0.123456 -> "0.1235",
    3e-05 -> "3e-5". Not-a-number is "NaN" and the infinities are "∞" and "-∞".
    """
    if isinstance(value, int):
        return f"{value:,}"
    value = float(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e15:
        return _scientific(value)
    decimals = max(SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(abs(value))), 0)
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_interval(value: float, low: float, high: float) -> tuple[str, str]:
    """Write a figure and the bounds of its interval with the same decimals: (0.161, 0.08326, 0.2446) -> ("0.161",
    "0.083 to 0.245").

    The figure keeps three significant digits and half the interval's width two; where that takes too many decimals,
    all are in scientific notation: (1.414e-8, 8.298e-9, 2.073e-8) -> ("1.41e-8", "8.30e-9 to 2.07e-8").
    """
    decimals = interval_decimals(value, low, high)
    values = (value, low, high)
    texts = [scientific(each) for each in values] if decimals > MAX_DECIMALS else written_alike(values, decimals)
    return texts[0], f"{texts[1]} to {texts[2]}"


def interval_decimals(value: float, low: float, high: float) -> int:
    """Decimals by which a figure keeps three significant digits, and half the width of its interval two."""
    largest, half = max(map(abs, (value, low, high))), (high - low) / 2
    wanted = [2 - math.floor(math.log10(largest))] if largest else []
    # bounds that differ by rounding alone say nothing of the digits that are known
    wanted += [1 - math.floor(math.log10(half))] if half > largest * ROUNDING else []
    return max([0, *wanted])


def written_alike(values: Sequence[float], decimals: int) -> list[str]:
    """Numbers with so many decimals, less those in which all have a zero."""
    texts = [f"{value:,.{decimals}f}" for value in values]
    while decimals and all(text.endswith("0") for text in texts):
        texts = [text[:-1] for text in texts]
        decimals -= 1
    return [text.removesuffix(".") for text in texts]


def scientific(value: float) -> str:
    """A number with three significant digits and an exponent: 1.41e-8."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}" if value else "0"


def format_bytes(size: int) -> str:
    """Write a size in bytes with binary units and three significant digits: 1536 -> "1.5 KiB".

    Raises:
        ValueError: the size is negative.
    """
    if size < 0:
        raise ValueError(f"A size cannot be negative: {size}.")
    if size < 1024:
        return f"{size:,} B"
    scaled = float(size)
    for unit in _BINARY_UNITS:
        scaled /= 1024
        if scaled < 1023.5 or unit == _BINARY_UNITS[-1]:  # rounded, it would be written as 1024
            break
    decimals = 0 if scaled >= 99.95 else 1 if scaled >= 9.995 else 2  # three digits after rounding
    text = f"{scaled:,.{decimals}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {unit}"


def format_duration(seconds: float) -> str:
    """Write a duration in seconds with its two largest units: 192 -> "3 min 12 s", 0.0125 -> "12.5 ms".

    Raises:
        ValueError: the duration is negative or not finite.
    """
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"A duration is a finite number of seconds, zero or more: {seconds}.")
    if seconds == 0:
        return "0 s"
    if seconds < 0.9995e-3:  # here and below: what rounds up to the next unit is written in it
        return f"{format_number(float(f'{seconds * 1e6:.3g}'))} µs"
    if seconds < 0.9995:
        return f"{format_number(float(f'{seconds * 1e3:.3g}'))} ms"
    if seconds < 59.95:
        return f"{format_number(round(seconds, 1))} s"
    if seconds < 3599.5:
        return _two_units(round(seconds), 60, "min", "s")
    if seconds < 24 * 3600 - 30:
        return _two_units(round(seconds / 60), 60, "h", "min")
    return _two_units(round(seconds / 3600), 24, "d", "h")


def format_moment(written: str) -> str:
    """Write a moment of ISO 8601 for readers, in UTC: "2026-01-31T09:05:07+0100" -> "2026-01-31 08:05 UTC".

    One without a time zone is shown in none.

    Raises:
        ValueError: the text is no moment of ISO 8601.
    """
    moment = datetime.fromisoformat(written)
    if moment.tzinfo is None:
        return moment.strftime("%Y-%m-%d %H:%M")
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _two_units(amount: int, size: int, large: str, small: str) -> str:
    whole, rest = divmod(amount, size)
    return f"{whole:,} {large} {rest} {small}" if rest else f"{whole:,} {large}"


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.{SIGNIFICANT_DIGITS - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
