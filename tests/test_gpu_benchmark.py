"""The script that measures on a GPU, run on the CPU: whoever has a GPU for a quarter of an hour cannot mend it then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


def run(out: Path, *arguments: str) -> tuple[int, str]:
    """The exit code and what was printed."""
    command = [sys.executable, str(SCRIPT), "--out", str(out), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    return done.returncode, done.stdout + done.stderr


def content(out: Path, part: str) -> Any:
    return json.loads((out / f"{part}.json").read_text(encoding="utf-8"))


def test_parts_write_their_rows_and_print_their_tables(tmp_path):
    code, printed = run(
        tmp_path,
        "--part",
        "decode",
        "circuits",
        "--device",
        "cpu",
        "--tiny",
        "--only",
        "135M lmlab",
        "circuits 2 x 24 True",
    )
    assert code == 0, printed
    (decoded,) = content(tmp_path, "decode")["tables"].values()
    assert [(row["contender"], row["batch"]) for row in decoded] == [("lmlab", 1), ("lmlab", 16), ("lmlab", 64)]
    assert all(row["tokens/s"] > 0 for row in decoded)
    (steps,) = content(tmp_path, "circuits")["tables"].values()
    assert [row["recomputing"] for row in steps] == ["yes"]
    assert steps[0]["ms"] > steps[0]["forward pass ms"] > 0
    assert content(tmp_path, "decode")["environment"]["card"] == "CPU, 1 threads"
    tables = (tmp_path / "tables.md").read_text(encoding="utf-8")
    for part, columns in (("decode", "| contender | batch |"), ("circuits", "| examples | tokens |")):
        assert f"## {part} on CPU" in printed and f"## {part} on CPU" in tables
        assert columns in printed and columns in tables


def test_a_tutor_answers_and_learns(tmp_path):
    code, printed = run(tmp_path, "--part", "tutor", "--device", "cpu", "--tiny", "--only", "once", "tuning")
    assert code == 0, printed
    answers, tuned = content(tmp_path, "tutor")["tables"].values()
    assert [row["contender"] for row in answers] == ["the chapter read once"] and answers[0]["tokens/s"] > 0
    rows = {row["model"]: row for row in tuned}
    assert list(rows) == ["as it was", "tuned", "mask inverted"]
    assert rows["tuned"]["steps"] == 2 and rows["tuned"]["low"] <= rows["tuned"]["high"] < 0  # held-out answers
    assert rows["tuned"]["nats"] < rows["as it was"]["nats"]


def test_what_fails_is_a_row_and_the_exit_code(tmp_path):
    # tensors on this device hold no numbers, and nothing can be drawn there
    code, printed = run(tmp_path, "--part", "decode", "--device", "meta", "--tiny", "--only", "135M lmlab")
    assert code == 1
    assert "FAILED" in printed
    found = content(tmp_path, "decode")
    (rows,) = found["tables"].values()
    assert len(rows) == 1 and rows[0][""].startswith("FAILED") and found["tracebacks"][0].startswith("Traceback")


def test_minutes_are_kept(tmp_path):
    code, printed = run(tmp_path, "--part", "decode", "--device", "cpu", "--minutes", "0.1")
    assert code == 0
    # which of the two depends on how long imports take
    assert "left out for want of time: 1B transformers, static" in printed or "its time was over" in printed
    assert content(tmp_path, "decode")["tables"] == {}
    code, printed = run(tmp_path, "--part", "decode", "circuits", "--device", "cpu", "--minutes", "0")
    assert code == 0
    assert printed.count("no time is left for it") == 2


def test_passages_are_crafted_together_and_the_share_of_the_bound_is_told(tmp_path):
    code, printed = run(
        tmp_path, "--part", "poison", "--device", "cpu", "--tiny", "--only", "candidates 2", "'gcg', 'objective'"
    )
    assert code == 0, printed
    speed, grid = content(tmp_path, "poison")["tables"].values()
    assert [row["batch"] for row in speed] == [100] and speed[0]["bf16 a second"] > 0
    assert [row["optimizer"] for row in grid] == ["gcg"] and 0.5 < grid[0]["share of the bound"] <= 1
    assert "made-up questions" in printed
