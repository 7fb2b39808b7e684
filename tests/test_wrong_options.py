"""Whatever stands behind an option of a command is refused by a sentence, with exit code 2: hundreds of odd command
lines, the same ones each time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from every_command import commands, flag_of

ODD = ["x", "-1", "0", "nan", "1e400", "", "[", "{}", "a=b", "a=", "=", "9" * 30, "1,2,x", "-5B", ":"]
OF_A_COMMAND = 3
NEEDS_NOTHING = ("demo", "doctor", "serve", "swe doctor", "swe env")  # these would work, or wait


def _lines(draw: random.Random) -> Iterator[list[str]]:
    """Command lines with one odd value, and otherwise what is required, of which nothing is there."""
    for path, command in commands():
        options = [each for each in command.params if each.param_type_name == "option" and each.name != "help"]
        valued = [each for each in options if not getattr(each, "is_flag", False)]
        if path in NEEDS_NOTHING or not valued:
            continue
        arguments = [each for each in command.params if each.param_type_name == "argument"]
        words = path.split() + ["nothing"] * sum(max(1, each.nargs) for each in arguments)
        for odd in draw.sample(valued, min(OF_A_COMMAND, len(valued))):
            needed = [each for each in options if each.required and each is not odd]
            given = [
                word for each in needed for word in (flag_of(each), "written" if each.name == "out" else "nothing")
            ]
            yield [*words, *given, flag_of(odd), draw.choice(ODD)]


def test_odd_values_of_options_are_refused_in_a_sentence(
    lmlab: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [*_lines(random.Random(0))]
    assert len(lines) > 300
    for line in lines:
        done = lmlab(*line)
        assert done.code in (0, 2), (line, done.err)
        assert "pydantic" not in done.err and "fault of lmlab" not in done.err, (line, done.err)
