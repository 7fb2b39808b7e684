"""`lmlab circuits` as its users call it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from lmlab.data.tokenizer import Tokenizer
from lmlab.errors import UserError
from lmlab.files import only_writer
from lmlab.methods.edge_pruning import Circuit, EdgePruningConfig, FindConfig, find_circuit
from lmlab.methods.edge_pruning.search.prune import train_gates
from lmlab.models import ModelConfig, Transformer, save_pretrained

_SHARED = Path(os.environ.get("LMLAB_SHARED", "../shared")) / "data" / "tracr"


@pytest.fixture
def small(tmp_path):
    """A directory of a random model with a tokenizer, and examples for it."""
    tokenizer = Tokenizer.train(["a Mary a John a Tom gave a ring to the book "] * 20, 300)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, d_ff=48
    )
    save_pretrained(Transformer(config).initialize(0), tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    row = {"clean": "a Mary gave a ring to", "corrupted": "a John gave a ring to"}
    (tmp_path / "data.jsonl").write_text(
        "".join(
            json.dumps({**row, "clean": f"{row['clean']}{' to' * n}", "corrupted": f"{row['corrupted']}{' to' * n}"})
            + "\n"
            for n in range(4)
        )
    )
    return tmp_path


@pytest.mark.skipif(not _SHARED.exists(), reason="the shared data are not there (LMLAB_SHARED)")
def test_from_a_program_to_a_page(lmlab, tmp_path):
    model, out = _SHARED / "reverse", tmp_path / "c.json"
    done = lmlab(
        "circuits",
        "find",
        "--model",
        model,
        "--ablation",
        "zero",
        "--method",
        "acdc",
        "--threshold",
        "0.001",
        "--out",
        out,
    )
    assert done.code == 0, done.err
    assert "11 of 94 edges" in done.out and "exact." in done.out and "Memory of a step" in done.err
    figures = tmp_path / "f.json"
    done = lmlab(
        "circuits", "evaluate", out, "--model", model, "--curve", "--completeness", "--minimality", "--out", figures
    )
    assert (
        done.code == 0
        and json.loads(figures.read_text())["circuit"]["exact_match"] == 1
        and json.loads(figures.read_text())["superfluous"] == 0
    )
    methods = tmp_path / "m.json"
    done = lmlab(
        "circuits",
        "compare",
        "--model",
        model,
        "--ablation",
        "zero",
        "--num-edges",
        11,
        "--method",
        "eap",
        "--method",
        "random",
        "--out",
        methods,
    )
    assert done.code == 0 and "auroc" in done.out
    again = shutil.copy(out, tmp_path / "again.json")
    done = lmlab(
        "circuits",
        "report",
        out,
        "--curves",
        methods,
        "--with",
        again,
        "-o",
        tmp_path / "p.html",
        "-o",
        tmp_path / "g.dot",
    )
    assert done.code == 0 and "Other circuits" in (tmp_path / "p.html").read_text() and (tmp_path / "g.dot").exists()
    done = lmlab("circuits", "compare", out, out)
    assert done.code == 2 and "named twice" in done.err
    done = lmlab("circuits", "compare", out, again)
    assert done.code == 0 and "11 edges are in all 2 circuits" in done.out
    done = lmlab(
        "circuits",
        "find",
        "--model",
        _SHARED / "xproportion",
        "--ablation",
        "zero",
        "--method",
        "exact",
        "--num-edges",
        5,
        "--out",
        tmp_path / "x.json",
    )
    assert "exact." in done.out
    done = lmlab("circuits", "evaluate", tmp_path / "x.json", "--model", model)
    assert done.code == 2 and "another model" in done.err


def test_a_model_directory_with_texts(lmlab, small):
    options = ("--model", small / "model", "--data", small / "data.jsonl")
    done = lmlab("circuits", "find", *options, "--target", 0.5, "--steps", 5, "--out", small / "c.json")
    assert done.code == 0, done.err
    found = Circuit.load(small / "c.json")
    assert (
        found.about["tokenizer_hash"]
        and found.about["settings"]["pruning"]["steps"] == 5
        and len(found.about["data_hash"]) == 16
    )
    assert lmlab("circuits", "convert", small / "c.json", "--to", "eap-ig", "--out", small / "g.json").code == 0
    assert (
        lmlab(
            "circuits",
            "convert",
            small / "g.json",
            "--from",
            "eap-ig",
            "--model",
            small / "model",
            "--out",
            small / "d.json",
        ).code
        == 0
    )
    assert Circuit.load(small / "d.json").edges == found.edges


def test_a_circuit_of_another_tokenizer_or_graph_is_refused_with_both_hashes(lmlab, small):
    options = ("--model", small / "model", "--data", small / "data.jsonl")
    assert lmlab("circuits", "find", *options, "--method", "eap", "--target", 0.5, "--out", small / "c.json").code == 0
    content = json.loads((small / "c.json").read_text())
    for key in ("tokenizer_hash", "model_hash"):
        (small / "d.json").write_text(json.dumps({**content, key: "0123"}))
        done = lmlab("circuits", "evaluate", small / "d.json", *options)
        assert (
            done.code == 2
            and f"another {key.removesuffix('_hash')} (hash 0123, now {content[key]})" in done.err.replace("\n", " ")
        )
    shape = {**content["graph"]["shape"], "num_layers": 3}
    (small / "d.json").write_text(
        json.dumps({**content, "scores": None, "graph": {**content["graph"], "shape": shape}})
    )
    done = lmlab("circuits", "evaluate", small / "d.json", *options)
    assert done.code == 2 and "another graph" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("find", "--model", "nowhere"), "nothing at 'nowhere', where a model is needed"),
        (("find", "--model", "MODEL"), "lmlab circuits data"),
        (("find", "--model", "MODEL", "--data", "no.jsonl"), "No such file"),
        (("find", "--model", "MODEL", "--data", "DATA", "--method", "eapp"), "method"),
        (("find", "--model", "MODEL", "--data", "DATA", "--set", "pruning.stepz=3"), "unknown key 'stepz'"),
        (("find", "--model", "MODEL", "--data", "DATA", "--set", "graph.moe=expert"), "needs a mixture of experts"),
        (("find", "--model", "MODEL", "--data", "DATA", "--method", "eap"), "--target or --num-edges"),
        (
            ("find", "--model", "MODEL", "--data", "DATA", "--method", "eap", "--target", "2"),
            "leaves no edges to the method eap",
        ),
        (("find", "--model", "MODEL", "--data", "DATA", "--target", "0.9", "--price", "0.1"), "either target or price"),
        (("evaluate", "DATA", "--model", "MODEL"), "not valid JSON"),
        (("find", "--model", "MODEL", "--data", "DATA", "--out", "model"), "is a directory where a file is needed"),
        (("compare", "--model", "MODEL", "--data", "DATA", "--out", "model"), "is a directory where a file is needed"),
        (("find", "--model", "MODEL", "--data", "TWELVE", "--held-out", "0.99"), "leaves none to search on"),
        (("compare",), "Give circuits to compare, or --model"),
        (("report", "no.json"), "No such file"),
        (("data", "ioi", "--tokenizer", "nowhere", "--out", "x.jsonl"), "where a tokenizer is needed"),
        (("convert", "DATA", "--out", "x.json"), "either --from or --to"),
        (
            ("data", "pronouns", "--tokenizer", "MODEL", "--shots", "2", "--out", "x.jsonl"),
            "--shots has no influence: the task pronouns",
        ),
    ],
)
def test_mistakes_get_one_sentence(lmlab, small, monkeypatch, arguments, message):
    monkeypatch.chdir(small)
    (small / "twelve.jsonl").write_text((small / "data.jsonl").read_text() * 3)
    names = {"MODEL": "model", "DATA": "data.jsonl", "TWELVE": "twelve.jsonl"}
    done = lmlab("circuits", *(names.get(each, each) for each in arguments))
    assert done.code == 2 and message in done.err and "Traceback" not in done.err


def test_a_stopped_search_goes_on_and_another_one_may_not(lmlab, small, network, task_of, monkeypatch):
    task = task_of(network("llama"))
    config = EdgePruningConfig(target=0.5, steps=12, batch_size=2, checkpoint_every=4, polish=False)
    whole = train_gates(task, config, 0, small / "whole")
    calls, distance = [], task.distance

    def killed_at_the_seventh(*arguments):
        calls.append(1)
        if len(calls) == 7:
            raise RuntimeError("killed")
        return distance(*arguments)

    monkeypatch.setattr(task, "distance", killed_at_the_seventh)
    with pytest.raises(RuntimeError, match="killed"):
        train_gates(task, config, 0, small / "parts")
    assert [folder.name for folder in (small / "parts" / "checkpoints").iterdir()] == ["step-00000004"]
    resumed = train_gates(task, config, 0, small / "parts")
    assert torch.equal(resumed.edges, whole.edges) and int(resumed.num_steps) == 12
    options = (
        "--model",
        small / "model",
        "--data",
        small / "data.jsonl",
        "--target",
        0.5,
        "--steps",
        4,
        "--run",
        small / "run",
        "--out",
        small / "c.json",
    )
    assert lmlab("circuits", "find", *options).code == 0
    assert lmlab("circuits", "find", *options).code == 0  # nothing is left to train
    done = lmlab("circuits", "find", *options, "--seed", 7, "--ablation", "zero", "--set", "pruning.batch_size=2")
    assert (
        done.code == 2
        and "belongs to another search" in done.err
        and "seed (0, now 7)" in done.err
        and "ablation (interchange, now zero)" in done.err
        and "settings.pruning.batch_size (None, now 2)" in done.err
    )


@pytest.mark.slow
def test_two_processes_end_with_the_same_gates_also_where_each_holds_half_of_the_weights(forkserver, tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        """\
import sys, torch
from pathlib import Path
from lmlab.methods.edge_pruning import *
from lmlab.methods.edge_pruning.search.prune import train_gates
from lmlab.models import ModelConfig, Transformer
from lmlab.distributed import world
shape = dict(num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, init_std=0.3)
model = Transformer(ModelConfig(vocab_size=61, **shape)).initialize(0)
from lmlab.train import ParallelConfig, parallelize
if sys.argv[2] == 'shared':
    parallelize(model.requires_grad_(False), ParallelConfig(), world(), torch.device('cpu'), torch.float32)
g = torch.Generator().manual_seed(0)
clean, corrupted = torch.randint(0, 61, (2, 8, 6), generator=g).tolist()
task = Counterfactuals(MaskedModel(model, CircuitGraph(model.config)), make_examples(clean, corrupted, [[5]] * 8))
gates = train_gates(task, EdgePruningConfig(target=0.5, steps=6, batch_size=8), 0, Path(sys.argv[1]))
found = [list(gates.edges.shape), round(gates.edges.sum().item(), 3), int(gates.num_steps)]
Path(f'{sys.argv[1]}-{world().rank}.json').write_text(str(found))
"""
    )
    found = []
    for kind in ("whole", "shared"):
        done = forkserver.run(tmp_path / kind, kind, script=script, processes=2)
        assert done.returncode == 0, done.stderr[-2000:]
        found += [json.loads((tmp_path / f"{kind}-{rank}.json").read_text()) for rank in range(2)]
    assert found == [found[0]] * 4 and found[0][0] == [82] and found[0][2] == 6


@pytest.mark.parametrize(
    ("method", "option", "told"),
    [
        ("eap", ("--threshold", 0.1), "threshold has no influence on the method eap, only on acdc"),
        ("acdc", ("--price", 0.1), "price has no influence on the method acdc"),
        ("edge-pruning", ("--ig-steps", 7), "without warm_start"),
        ("edge-pruning", ("--set", "ranking.steps=7"), "ranking has no influence"),
        ("exact", ("--warm-start",), "warm_start has no influence"),
        ("eap", ("--whole-gradient",), "whole_gradient has no influence on the method eap, only on atp-star"),
        ("eap-ig", ("--steps", 7), "--steps has no influence"),
        ("random", ("--preset", "paper"), "preset has no influence"),
        ("eap", ("--seeds", 3), "every seed finds the same circuit"),
        ("eap", ("--seeds", 3, "--ablation", "mean"), "every seed finds the same circuit"),
    ],
)
def test_an_option_without_influence_on_the_method_is_refused_before_the_search(
    lmlab, small, tmp_path, method, option, told
):
    options = ("--model", small / "model", "--data", small / "data.jsonl", "--method", method)
    size = () if "--price" in option else ("--num-edges", 10)
    done = lmlab("circuits", "find", *options, *size, *option, "--out", tmp_path / "c.json")
    assert done.code == 2 and told in done.err and not (tmp_path / "c.json").exists()


@pytest.mark.parametrize("method", ["edge-pruning", "node-pruning", "ugs", "ranking"])
def test_steps_and_batches_that_were_asked_for_reach_every_method_that_trains(lmlab, small, method):
    """A ranking went on for its 500 steps of 32 examples, whatever was asked for."""
    part = "ranking" if method == "ranking" else "pruning"
    options = ("--model", small / "model", "--data", small / "data.jsonl", "--method", method, "--force")
    options = (*options, "--steps", 2, "--batch-size", 3, "--set", f"{part}.learning_rate=0.25", "--num-edges", 10)
    done = lmlab("circuits", "find", *options, "--out", small / "c.json")
    assert done.code == 0, done.err
    own = Circuit.load(small / "c.json").about["settings"][part]
    assert (own["steps"], own["micro_batch_size"], own["learning_rate"]) == (2, 3, 0.25)


def test_a_comparison_takes_what_one_of_its_methods_reads(lmlab, small):
    options = ("circuits", "compare", "--model", small / "model", "--data", small / "data.jsonl", "--num-edges", 10)
    done = lmlab(*options, "--method", "eap", "--method", "random", "--set", "ranking.steps=3")
    assert done.code == 2 and "ranking has no influence on eap, random" in done.err
    done = lmlab(*options, "--method", "eap", "--method", "ranking", "--steps", 2)
    assert done.code == 0, done.err


def test_a_directory_of_a_search_belongs_to_one_process(task_of, network, tmp_path):
    task = task_of(network("gpt2"))
    with only_writer(tmp_path), pytest.raises(UserError, match="Another process is writing"):
        find_circuit(task, FindConfig(price=0.1, pruning={"steps": 2}), directory=tmp_path, force=True)


@pytest.mark.skipif(not _SHARED.exists(), reason="the shared data are not there (LMLAB_SHARED)")
def test_a_sweep_goes_on_with_what_is_missing(lmlab, tmp_path):
    out = tmp_path / "sweep"
    command = ["circuits", "sweep", "--model", _SHARED / "xproportion", "--ablation", "zero", "--method", "eap"]
    done = lmlab(*command, "--edge-counts", "3,5", "--out", out)
    assert done.code == 0, done.err
    assert "that the searches saw" in done.out and "num_edges-5/seed-0" in done.out
    rows = json.loads((out / "sweep.json").read_text())
    assert [row["settings"] for row in rows] == [{"num_edges": 3, "seed": 0}, {"num_edges": 5, "seed": 0}]
    assert [row["results"]["circuit"]["edges"] for row in rows] == [3, 5]
    before = _circuits(out)
    assert len(before) == 2
    shutil.rmtree(out / "num_edges-3")
    stamp = (out / "num_edges-5/seed-0/circuit/circuit.json").stat().st_mtime_ns
    assert lmlab(*command, "--edge-counts", "3,5", "--out", out).code == 0
    assert _circuits(out) == before
    assert (out / "num_edges-5/seed-0/circuit/circuit.json").stat().st_mtime_ns == stamp
    assert lmlab("report", out / "num_edges-3/seed-0").code == 0
    assert "circuit" in (out / "num_edges-3/seed-0/report.html").read_text()
    done = lmlab(*command, "--edge-counts", "4", "--out", out, "--metric", "distance")
    assert done.code == 2 and "another search" in done.err
    for wrong, message in (
        (["--edge-counts", "3,x"], "no list of numbers"),
        ([], "Give one of"),
        (["--edge-counts", "3,3"], "twice"),
    ):
        done = lmlab(*command, *wrong, "--out", tmp_path / "other")
        assert done.code == 2 and message in done.err


def test_a_sweep_holds_examples_out_and_finds_what_find_does(lmlab, small):
    rows = [
        {"clean": f"a Mary gave a ring to{' to' * n}", "corrupted": f"a John gave a ring to{' to' * n}"}
        for n in range(12)
    ]
    (small / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--model", small / "model", "--data", small / "more.jsonl", "--method", "random", "--seed", 3)
    options = (*options, "--held-out", 0.25, "--examples", 11)
    done = lmlab("circuits", "sweep", *options, "--edge-counts", "9,20", "--seeds", 2, "--out", small / "sweep")
    assert done.code == 0, done.err
    assert "held out from the searches" in done.out
    assert lmlab("circuits", "find", *options, "--num-edges", 20, "--out", small / "one.json").code == 0
    assert len(_circuits(small / "sweep")) == 4
    found, swept = (
        Circuit.load(small / path) for path in ("one.json", "sweep/num_edges-20/seed-3/circuit/circuit.json")
    )
    assert swept.edges == found.edges and swept.metrics == found.metrics and swept.metrics["held_out"]["n"] == 3


@pytest.mark.skipif(not _SHARED.exists(), reason="the shared data are not there (LMLAB_SHARED)")
def test_a_sweep_that_is_killed_finds_the_same_circuits(forkserver, lmlab, tmp_path):
    command = ["circuits", "sweep", "--model", _SHARED / "xproportion", "--ablation", "zero"]
    command += ["--steps", 24, "--set", "pruning.checkpoint_every=4"]
    command += ["--set", "pruning.restarts=1", "--set", "pruning.polish=false"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    (process,) = forkserver.start(*command, "--prices", "0.01,0.1", "--out", cut)
    checkpoints = cut / "price-0.1/seed-0/circuit/search/training-0/checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step-*")):  # the first search is done, the second under way
        assert process.poll() is None and time.monotonic() < deadline, process.communicate(timeout=10)
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and len(_circuits(cut)) == 1
    assert lmlab(*command, "--prices", "0.01,0.1", "--out", cut).code == 0
    assert lmlab(*command, "--prices", "0.1", "--out", whole).code == 0
    cut_off = "price-0.1/seed-0"
    assert len(_circuits(cut)) == 2 and _circuits(cut)[cut_off] == _circuits(whole)[cut_off]


@pytest.mark.skipif(not _SHARED.exists(), reason="the shared data are not there (LMLAB_SHARED)")
def test_a_ranking_that_is_killed_comes_to_the_same_end(forkserver, lmlab, tmp_path):
    command = ["circuits", "find", "--model", _SHARED / "xproportion", "--ablation", "zero", "--method", "ranking"]
    command += ["--num-edges", 5, "--steps", 60, "--set", "ranking.checkpoint_every=2"]
    (process,) = forkserver.start(*command, "--run", tmp_path / "cut", "--out", tmp_path / "cut.json")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cut/ranking/checkpoints").glob("step-*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate(timeout=10)
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "cut.json").exists()
    for name in ("cut", "whole"):
        assert lmlab(*command, "--run", tmp_path / name, "--out", tmp_path / f"{name}.json").code == 0
    cut, whole = (Circuit.load(tmp_path / f"{name}.json") for name in ("cut", "whole"))
    assert torch.equal(cut.scores_E, whole.scores_E) and cut.edges == whole.edges
    done = lmlab(*command, "--run", tmp_path / "cut", "--seed", 1, "--out", tmp_path / "cut.json")
    assert done.code == 2 and "belongs to another search" in done.err


def _circuits(out: Path) -> dict[str, bytes]:
    """The circuits of a sweep, by their runs."""
    return {str(path.parents[1].relative_to(out)): path.read_bytes() for path in out.glob("*/*/circuit/circuit.json")}


def test_prompts_that_the_search_has_seen_are_told(lmlab, small):
    """The splits of a file are the user's own."""
    rows = [json.loads(line) for line in (small / "data.jsonl").read_text().splitlines()]
    named = [{**row, "split": "train"} for row in rows] + [{**row, "split": "test"} for row in rows[:3]]
    (small / "named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    options = ("--model", small / "model", "--method", "random", "--num-edges", 9, "--force")
    done = lmlab("circuits", "find", *options, "--data", small / "named.jsonl", "--out", small / "c.json")
    assert done.code == 0 and "3 examples that are held out 3 have a prompt of the search" in " ".join(done.err.split())
