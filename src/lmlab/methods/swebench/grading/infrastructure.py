"""Signs that the surroundings have failed and not the patch.

They say why a run has no verdict, or a bad one; they never change a count.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Tier = Literal["environment", "ambiguous"]


class Sign(NamedTuple):
    """A reason by name, and how sure it is: no patch brings about `environment`, `ambiguous` may be either."""

    reason: str
    tier: Tier


_PATTERNS: tuple[tuple[str, Tier, str], ...] = (
    ("browser_launch_failed", "environment", r"Failed to launch|Failed to connect to the bus"),
    ("display_unavailable", "environment", r"cannot open display|Missing X server|unable to open X display"),
    ("out_of_memory", "environment", r"Cannot allocate memory|OutOfMemoryError|^Killed$"),
    (
        "container_unavailable",
        "environment",
        r"Error response from daemon|Cannot connect to the Docker daemon",
    ),
    ("network_unreachable", "environment", r"Could not resolve host|Temporary failure in name resolution"),
    ("missing_module", "ambiguous", r"Cannot find module|MODULE_NOT_FOUND|ModuleNotFoundError"),
    ("no_tests_collected", "ambiguous", r"no tests ran|collected 0 items"),
    ("tests_timed_out", "ambiguous", r"Timeout error: \d+ seconds exceeded"),
)
_SIGNS = [(Sign(reason, tier), re.compile(pattern, re.MULTILINE)) for reason, tier, pattern in _PATTERNS]


def sign_in(text: str, network: bool = True) -> Sign | None:
    """The first sign in a log, or none.

    Arguments:
        network: the tests had one; without, every test that asks for a name prints an error of name resolution, which
            then says little.
    """
    for sign, pattern in _SIGNS:
        if pattern.search(text):
            if sign.reason == "network_unreachable" and not network:
                return Sign(sign.reason, "ambiguous")
            return sign
    return None
