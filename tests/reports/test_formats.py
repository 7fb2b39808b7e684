"""Facts about how numbers, sizes and durations are written."""

from __future__ import annotations

import pytest

from lmlab.progress import with_unit
from lmlab.reports import format_bytes, format_duration, format_interval, format_moment, format_number


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (1234567, "1,234,567"),
        (-1234, "-1,234"),
        (0.0, "0"),
        (0.123456, "0.1235"),
        (0.5, "0.5"),
        (2.0, "2"),
        (99.996, "100"),
        (1234.56, "1,235"),
        (1234567.8, "1,234,568"),
        (-0.25, "-0.25"),
        (0.00012345, "0.0001234"),
        (3e-5, "3e-5"),
        (1.5e20, "1.5e20"),
        (float("nan"), "NaN"),
        (float("inf"), "∞"),
        (float("-inf"), "-∞"),
    ],
)
def test_numbers(value: float, expected: str) -> None:
    assert format_number(value) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1024**2 - 1, "1 MiB"),
        (10 * 1024**2 + 1, "10 MiB"),
        (538_090_408, "513 MiB"),
        (3 * 1024**4, "3 TiB"),
        (5000 * 1024**6, "5,000 EiB"),
    ],
)
def test_sizes(size: int, expected: str) -> None:
    assert format_bytes(size) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 s"),
        (2.5e-6, "2.5 µs"),
        (0.0125, "12.5 ms"),
        (0.9999, "1 s"),
        (5.23, "5.2 s"),
        (59.97, "1 min"),
        (192, "3 min 12 s"),
        (3599.7, "1 h"),
        (3 * 3600 + 720, "3 h 12 min"),
        (86399, "1 d"),
        (90000, "1 d 1 h"),
        (1000 * 86400, "1,000 d"),
    ],
)
def test_durations(seconds: float, expected: str) -> None:
    assert format_duration(seconds) == expected


def test_impossible_sizes_and_durations_are_errors() -> None:
    with pytest.raises(ValueError, match="negative"):
        format_bytes(-1)
    for seconds in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite number of seconds"):
            format_duration(seconds)


def test_moments_are_told_in_utc() -> None:
    assert format_moment("2026-01-31T00:05:07+0100") == "2026-01-30 23:05 UTC"
    assert format_moment("2026-01-31T00:05:07") == "2026-01-31 00:05"
    with pytest.raises(ValueError, match="isoformat"):
        format_moment("yesterday")


def test_quantities_have_a_space_before_their_unit() -> None:
    assert [with_unit(value, "B") for value in (12, 397e3, 4.76e10, 0)] == ["12 B", "397 kB", "47.6 GB", "0 B"]


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        ((1.414e-8, 8.298e-9, 2.073e-8), ("1.41e-8", "8.30e-9 to 2.07e-8")),
        ((0.161, 0.08326, 0.2446), ("0.161", "0.083 to 0.245")),
        ((43.43, 30.1, 55.2), ("43.4", "30.1 to 55.2")),
        ((0.985, 0.9849, 0.9851), ("0.9850", "0.9849 to 0.9851")),
        ((1.0, 0.5, 1.0), ("1.0", "0.5 to 1.0")),
        ((1.0, 1.0, 1.0), ("1", "1 to 1")),
        ((1.0, 1 - 2e-8, 1.0), ("1", "1 to 1")),
        ((0.0, 0.0, 0.0), ("0", "0 to 0")),
    ],
)
def test_a_figure_and_its_interval_have_the_same_decimals(
    figure: tuple[float, float, float], expected: tuple[str, str]
) -> None:
    assert format_interval(*figure) == expected
