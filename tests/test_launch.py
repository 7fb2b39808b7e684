"""Recipes on clusters: the script for one on many machines, and many at once."""

from __future__ import annotations

import re
import subprocess

import pytest

from lmlab.files import read_json
from lmlab.launch.slurm import SlurmJob


def test_the_script_is_valid_shell_and_says_what_was_asked_for(lmlab, recipe, tmp_path):
    path = recipe(until="model")
    shown = lmlab(
        "launch",
        "slurm",
        path,
        "--nodes",
        "4",
        "--repeat",
        "3",
        "--out",
        tmp_path / "run",
        "--set",
        "model.trainer.steps=7",
        "--partition",
        "gpu",
    )
    assert shown.code == 0, shown.err
    for line in (
        "--nodes=4",
        "--gpus-per-node=8",
        "--array=1-3%1",
        "--signal=TERM@120",
        "--partition=gpu",
        "--requeue",
    ):
        assert f"#SBATCH {line}\n" in shown.out
    assert f"-m lmlab run {path} --out {tmp_path}/run --set model.trainer.steps=7\n" in shown.out
    assert subprocess.run(["bash", "-n"], input=shown.out, text=True).returncode == 0


def test_values_cannot_become_shell(tmp_path):
    job = SlurmJob("name", ["run", "a b.yaml", "--set", "x=$(touch hacked); `id`"], tmp_path, setup="true")
    lines = job.script().splitlines()
    assert lines[-1].endswith("""-m lmlab run 'a b.yaml' --set 'x=$(touch hacked); `id`'""")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--time", "soon", "not a time for Slurm"),
        ("--partition", "a b", "not a name for Slurm"),
        ("--set", "model.nothing=1", "unknown key"),
    ],
)
def test_mistakes_are_found_before_anything_is_submitted(lmlab, recipe, option, value, message):
    shown = lmlab("launch", "slurm", recipe(until="model"), option, value)
    assert shown.code == 2 and message in shown.err and shown.out == ""


@pytest.mark.slow
def test_a_sweep_runs_every_combination_once_and_one_failure_stops_no_other(lmlab, recipe, tmp_path):
    path = recipe(until="model")
    arguments = (
        "launch",
        "sweep",
        path,
        "--vary",
        "seed=0,1",
        "--vary",
        "model.seq_len=64,4096",
        "--out",
        tmp_path / "sweep",
    )
    plan = lmlab(*arguments, "--dry-run")
    assert plan.code == 2 and "longer than the model's max_seq_len" in plan.err
    arguments = (
        *arguments[:5],
        "--vary",
        "documents.min_bytes=200,10000000",
        "--out",
        tmp_path / "sweep",
        "--workers",
        "2",
    )
    shown = lmlab(*arguments)
    assert shown.code == 2 and "2 of 4 runs failed" in shown.err and "No document is left for training" in shown.err
    rows = read_json(tmp_path / "sweep" / "sweep.json")
    assert [row["state"] for row in rows] == ["done", "failed", "done", "failed"]
    assert rows[0]["results"]["model"]["steps"] == 6
    assert (
        lmlab(
            "launch",
            "sweep",
            path,
            "--vary",
            "seed=0,1",
            "--vary",
            "documents.min_bytes=200",
            "--out",
            tmp_path / "sweep",
        ).code
        == 0
    )


@pytest.mark.parametrize(
    ("vary", "message"),
    [("seed", "expected KEY=VALUE"), ("seed=1,1", "the same name"), ("nothing=1", "no stage or key 'nothing'")],
)
def test_what_is_varied_is_checked(lmlab, recipe, tmp_path, vary, message):
    shown = lmlab("launch", "sweep", recipe(until="model"), "--vary", vary, "--out", tmp_path)
    assert shown.code == 2 and message in shown.err


@pytest.mark.parametrize("lora", [None, {"rank": 4, "targets": ["embedding", "query"]}], ids=["whole", "adapters"])
def test_a_plan_of_tuning_an_earlier_stage_tells_memory_and_time(lmlab, recipe, lora):
    def change(data):
        model = data["stages"]["model"]
        tuned = {key: value for key, value in model.items() if key not in ("model", "lora")}
        settings = {"start": "model"} | ({"lora": lora} if lora else {})
        data["stages"] |= {"tuned": {**tuned, **settings}, "again": {**tuned, "start": "tuned"}}

    shown = lmlab("run", recipe(change), "--dry-run")
    assert shown.code == 0, shown.err
    text = " ".join((shown.out + shown.err).replace("│", " ").split())
    assert text.count("length:") == text.count("memory: about") == text.count("time: about") == 3
    assert ("of adapters are trained" in text) == (lora is not None)


@pytest.mark.parametrize("key", ["quantization_config", "load_in_4bit"])
def test_other_keys_of_a_quantized_base_are_refused_with_ours(lmlab, recipe, key):
    def change(data):
        data["stages"]["model"] |= {"start": "somewhere", "lora": {key: "nf4"}}

    shown = lmlab("run", recipe(change), "--dry-run")
    assert shown.code == 2
    assert f"{key}: weights beside adapters are quantized by the key quantize: nf4 or int8" in " ".join(
        shown.err.split()
    )


def test_a_plan_for_many_processes_tells_memory_and_traffic(lmlab, recipe):
    path = recipe(until="model", change=lambda data: data["stages"]["model"]["trainer"].update(batch_size=64))
    one = lmlab("run", path, "--dry-run")
    many = lmlab("run", path, "--dry-run", "--processes", "16")
    assert one.code == many.code == 0
    text = re.sub(r"[│\s]+", " ", many.err)
    assert (
        "communication" not in one.err
        and "16 on 2 machines: 1 x 16 (copies x shares, fsdp)" in text
        and "over the network" in text
    )
    assert lmlab("run", path, "--processes", "16").code == 2
    assert lmlab("run", path, "--dry-run", "--processes", "12").code == 2
