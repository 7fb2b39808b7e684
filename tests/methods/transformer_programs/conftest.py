"""Ground truth of Transformer Programs, where it is at hand, and small programs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lmlab.methods.transformer_programs.program.ir import Lookup, Program, Select
from lmlab.methods.transformer_programs.program.tables import Classifier


@pytest.fixture(scope="session")
def ground_truth() -> Path:
    """The directory with published programs, checkpoints and splits."""
    path = Path(os.environ.get("LMLAB_SHARED", "/nonexistent")) / "data" / "programs"
    if not path.is_dir():
        pytest.skip("LMLAB_SHARED names no directory with the published programs")
    return path


def counting_program() -> Program:
    """Whether a token occurs once, or more often: one counting head and one table; any length."""
    tokens = ("a", "b", 'x"); import os', "NA", "nan,\n")
    return Program(
        inputs=("tokens", "positions", "ones"),
        numerical=frozenset({"ones", "count"}),
        nodes=(
            Select("select_sum", "count", "tokens", "tokens", "ones", tuple((each, each) for each in tokens)),
            Lookup("kind", ("count",), {(0,): 0, (1,): 0}, 1),
        ),
        classifier=Classifier(("once", "more"), {"kind": {"0": (1.0, 0.0), "1": (0.0, 1.0)}}),
        vocabulary=tokens,
    )


@pytest.fixture
def counting() -> Program:
    return counting_program()
