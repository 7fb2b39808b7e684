"""Numbers, sizes and durations as a reader wants to see them."""

from __future__ import annotations

import math
from datetime import UTC, datetime

SIGNIFICANT_DIGITS = 4  # what most measurements here can tell apart, and what a table has room for
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
