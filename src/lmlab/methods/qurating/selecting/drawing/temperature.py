"""What a temperature may be; apart from the arithmetic, so that settings can be read without it."""

from __future__ import annotations

import math

from lmlab.methods.qurating.selecting.problems import BadTemperature

_SMALLEST = 1e-200  # below it noise times the temperature is lost beside any rating


def is_zero(tau: float) -> bool:
    """Whether a temperature is 0, or so small that no noise in float64 changes the order of ratings."""
    return tau < _SMALLEST


def check_temperature(tau: float) -> float:
    """The temperature as it is.

    Raises:
        BadTemperature: it is negative or not a number.
    """
    if math.isnan(tau) or tau < 0:
        raise BadTemperature(
            f"The temperature tau is {tau}; it must be 0 or more.", "To choose the lowest ratings use --invert."
        )
    return tau
