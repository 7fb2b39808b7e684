"""Tasks on the live model: the same figures as an evaluation of the exported model, by one process and by
shares of it.
"""

from __future__ import annotations

import json

import pytest
import torch

from lmlab.files import read_json
from lmlab.train import read_metrics


def with_task(tmp_path, library):
    lines = [line.strip() for line in (library / "heapq.py").read_text().splitlines() if len(line.strip()) > 30]
    with (tmp_path / "lines.jsonl").open("w") as file:
        for number in range(0, 60, 3):
            options = [f" {text}" for text in lines[number + 1 : number + 4]]
            file.write(json.dumps({"id": str(number), "context": lines[number], "options": options, "gold": 0}) + "\n")
    (tmp_path / "lines.yaml").write_text("name: lines\nrequests: lines.jsonl\n")

    def change(data):
        data["stages"]["model"] |= {"tasks": [str(tmp_path / "lines.yaml")], "tasks_limit": 20}
        data["stages"]["model"]["trainer"]["evaluate_every"] = 3

    return change


def test_tasks_are_measured_on_the_live_model(lmlab, recipe, library, tmp_path):
    path = recipe(with_task(tmp_path, library), until="model")
    assert lmlab("run", path, "--out", tmp_path / "run").code == 0
    rows = {row["step"]: row for row in read_metrics(tmp_path / "run" / "model" / "metrics.jsonl")}
    assert [step for step, row in rows.items() if "lines/accuracy" in row] == [3, 6]
    done = lmlab(
        "eval",
        "--model",
        tmp_path / "run" / "model",
        "--tasks",
        tmp_path / "lines.yaml",
        "--precision",
        "fp32",
        "--out",
        tmp_path / "after",
    )
    assert done.code == 0, done.err
    figures = read_json(tmp_path / "after" / "results.json")["evaluation"]["tasks"]["lines"]["figures"]
    for name in ("accuracy", "bits_per_byte"):
        assert rows[6][f"lines/{name}"] == pytest.approx(figures[name]["value"], abs=1e-5)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this build of PyTorch has no gloo")
def test_shares_of_a_model_give_the_figures_of_the_whole(forkserver, lmlab, recipe, library, tmp_path):
    path = recipe(with_task(tmp_path, library), until="model")
    assert lmlab("run", path, "--out", tmp_path / "one").code == 0
    done = forkserver.run("run", path, "--out", tmp_path / "two", processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (
        [
            row["lines/bits_per_byte"]
            for row in read_metrics(tmp_path / name / "model" / "metrics.jsonl")
            if "lines/accuracy" in row
        ]
        for name in ("one", "two")
    )
    assert one == pytest.approx(two, rel=1e-4)
