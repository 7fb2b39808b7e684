"""Recipes with mixtures of experts, from text to a report; ablations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmlab.config import validate
from lmlab.errors import UserError
from lmlab.files import read_json
from lmlab.methods.olmoe import AblationConfig, Choice, RoutingTrace, compare, run_ablation
from lmlab.methods.olmoe.byte_corpus import ByteCorpus, ByteWindows
from lmlab.models import from_pretrained
from lmlab.runs import Recipe, run_recipe

RECIPES = Path(__file__).parents[3] / "recipes"


SMALL = {"vocab_size": 300, "num_layers": 1, "d_model": 64, "num_heads": 2, "max_seq_len": 128}
TRAINER = {"steps": 4, "batch_size": 4, "evaluate_every": 2, "precision": "fp32", "device": "cpu", "log_every": 1}


@pytest.fixture
def demo_with_experts(library, tmp_path) -> dict[str, Any]:
    """What makes `demo-moe.yaml` small."""
    trained = {"seq_len": 64, "heldout_rows": 4, "trainer": TRAINER}
    removed = ("ladder", "outcome", "words", "questions", "baselines", "evaluation", "samples", "export")
    return {
        "extends": str(RECIPES / "demo-moe.yaml"),
        "stages": {
            "documents": {"sources": [{"kind": "python_library", "path": str(library)}], "heldout_fraction": 0.3},
            "tokenizer": {"vocab_size": 300},
            "model": {**trained, "questions": None, "model": SMALL},
            "sparse": {**trained, "model": SMALL},
            "upcycled": trained,
            "routing": {"seq_len": 64, "sequences": 8, "earlier": {"start": {"model": "sparse"}}},
            **dict.fromkeys(removed),
        },
    }


def recipe_of(settings: Mapping[str, Any], directory: Path) -> Recipe:
    path = directory / "small.yaml"
    path.write_text(yaml.safe_dump(settings), "utf-8")
    return Recipe.load(path)


def test_the_demo_with_a_sparse_twin_goes_from_text_to_routing_and_a_report(demo_with_experts, tmp_path):
    results = run_recipe(recipe_of(demo_with_experts, tmp_path), tmp_path)
    assert results["sparse"].parameters > results["sparse"].active_parameters
    sparse, upcycled = (from_pretrained(tmp_path / name / "model") for name in ("sparse", "upcycled"))
    assert sparse.config.moe.num_experts == 16 and upcycled.config.moe.norm_topk_prob
    rows = [json.loads(line) for line in (tmp_path / "sparse" / "metrics.jsonl").read_text().splitlines()]
    assert results["sparse"].heldout("loss") == rows[-1]["heldout_loss"]
    assert "routing_saturation" in rows[-1] and "load_balancing_loss" in rows[0]
    assert RoutingTrace.load(tmp_path / "routing" / "trace.npz").top_k == 4
    page = (tmp_path / "report.html").read_text()
    assert "Co-activation" in page and "Load-balancing loss" in page
    assert ">Training: sparse<" in page and page.index(">Held-out loss<") < page.index(">Training: sparse</h2>")


def test_a_stage_with_a_data_seed_sees_the_same_text_in_another_order(demo_with_experts, tmp_path):
    """As OLMoE's annealing does."""
    stages = demo_with_experts["stages"] | dict.fromkeys(("model", "upcycled_start", "upcycled", "routing", "report"))
    sparse = {"tokens": "tokens", "tokenizer": "tokenizer", "heldout_tokens": "heldout_tokens", **stages["sparse"]}
    sparse["model"] = {**SMALL, "ffn": "moe", "moe": {"num_experts": 4, "top_k": 2, "expert_hidden_size": 16}}
    stages |= {
        name: {"kind": "train", **sparse, **seeds}
        for name, seeds in (("first", {}), ("again", {"data_seed": 0}), ("other", {"data_seed": 1}))
    }
    run_recipe(recipe_of({**demo_with_experts, "stages": stages | {"sparse": None}}, tmp_path), tmp_path)

    def losses(name: str) -> list[float]:
        return [
            json.loads(line)["loss"]
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
            if '"loss"' in line
        ]

    assert losses("first") == losses("again") != losses("other")


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for domain, word in (("prose", "The sea is wide. "), ("code", "def f(x): return x + 1\n")):
        rows = [{"id": str(number), "domain": domain, "text": f"{number} {word * 20}"} for number in range(40)]
        (folder / f"{domain}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def ablation(texts: Path, **changes) -> AblationConfig:
    sizes = {"preset": "OLMoE-tiny", "num_layers": 1, "d_model": 32, "num_heads": 2}
    settings = {
        "texts": str(texts),
        "model": sizes,
        "variants": {
            "moe": {"moe": {"num_experts": 4, "top_k": 2, "expert_hidden_size": 16}},
            "dense": {"ffn": "dense", "moe": None, "d_ff": 32},
        },
        "choices": [{"title": "MoE or dense", "variants": ["moe", "dense"]}],
        "seeds": [0, 1],
        "seq_len": 32,
        "trainer": {"steps": 3, "batch_size": 4, "precision": "fp32", "device": "cpu", "log_every": 1},
    }
    return validate(AblationConfig, {**settings, **changes}, "the ablation")


def test_one_file_gives_a_table_with_seeds_and_significance(texts, tmp_path):
    told = []
    found = run_ablation(ablation(texts), tmp_path, lambda result: told.append((result["variant"], result["seed"])))
    assert sorted(told) == [("dense", 0), ("dense", 1), ("moe", 0), ("moe", 1)]
    (row,) = found["comparisons"]
    expected = [b["loss"] - a["loss"] for a, b in zip(found["results"]["moe"], found["results"]["dense"], strict=True)]
    assert (
        row["difference"] == pytest.approx(sum(expected) / 2)
        and row["interval"][0] < row["difference"] < row["interval"][1]
    )
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("stage.json")}
    assert len(stamps) == 4 and all(read_json(path)["results"]["loss"] for path in stamps)
    assert run_ablation(ablation(texts), tmp_path)["comparisons"] == found["comparisons"]
    assert stamps == {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("stage.json")
    }  # nothing was trained again


def test_an_ablation_is_a_run_and_so_is_each_training_of_it(lmlab, texts, tmp_path):
    path, out = tmp_path / "variants.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(ablation(texts).model_dump(mode="json")))
    first = lmlab("olmoe", "ablate", path, "--only", "moe", "--out", out)
    assert first.code == 0 and first.out == "", first.err  # a variant alone has nothing to be compared with
    (trained,) = {each.parent for each in out.rglob("seed-0")}
    stamp = (trained / "seed-0" / "model" / "stage.json").stat().st_mtime_ns
    done = lmlab("olmoe", "ablate", path, "--out", out)
    assert done.code == 0, done.err
    assert done.out.startswith("MoE or dense: dense - moe = ") and "2 seeds, 95 % interval" in done.out
    assert (trained / "seed-0" / "model" / "stage.json").stat().st_mtime_ns == stamp  # what was there is kept
    for run, words in (
        (out, ("Design choices", "MoE or dense", "highest load")),
        (trained / "seed-0", ("nats a byte",)),
    ):
        (run / "report.html").unlink(missing_ok=True)
        assert lmlab("report", run).code == 0
        page = (run / "report.html").read_text()
        assert all(each in page for each in words)


def test_a_paired_test_by_hand():
    results = {
        "a": [{"seed": seed, "loss": loss} for seed, loss in enumerate((2.0, 2.1, 1.9))],
        "b": [{"seed": seed, "loss": loss} for seed, loss in enumerate((2.1, 2.3, 2.0))],
        "c": [{"seed": 7, "loss": 1.0}],
    }
    b, c = compare(Choice(title="?", variants=("a", "b", "c")), results)
    from scipy.stats import ttest_rel

    assert b["p"] == pytest.approx(ttest_rel([2.1, 2.3, 2.0], [2.0, 2.1, 1.9]).pvalue)
    assert c == {
        "choice": "?",
        "variant": "c",
        "against": "a",
        "seeds": 0,
        "difference": None,
        "interval": None,
        "p": None,
    }


def test_rows_depend_on_seed_and_number_alone_and_parts_are_disjoint(texts):
    corpus = ByteCorpus(texts)
    first, again, other = (ByteWindows(corpus, 32, 10, seed) for seed in (0, 0, 1))
    assert all((first[n]["input_ids"] == again[n]["input_ids"]).all() for n in range(10))
    assert any((first[n]["input_ids"] != other[n]["input_ids"]).any() for n in range(10))
    windows, domains = corpus.validation_windows(32, 4)
    assert windows.shape == (8, 32) and domains.tolist() == [0] * 4 + [1] * 4
    assert b"36 " not in corpus.train["code"].tobytes() and corpus.validation["code"].tobytes().startswith(b"36 ")


def test_mistakes_in_an_ablation_are_explained(texts, tmp_path):
    with pytest.raises(UserError, match="there is no variant 'moo'. Did you mean 'moe'"):
        ablation(texts, choices=[{"title": "?", "variants": ["moo", "dense"]}])
    with pytest.raises(UserError, match="there is no variant 'moo'"):
        ablation(texts, only=["moo"])
    with pytest.raises(UserError, match=r"trainer\.epochs: rows are drawn at random"):
        ablation(texts, trainer={"epochs": 1, "batch_size": 4})
    with pytest.raises(UserError, match="variant 'bad'.*top_k 9 exceeds num_experts 4"):
        run_ablation(ablation(texts, variants={"bad": {"moe": {"num_experts": 4, "top_k": 9}}}, choices=[]), tmp_path)
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "a.jsonl").write_text('{"text": "short", "domain": "a"}')
    with pytest.raises(UserError, match="too little text"):
        ByteCorpus(tmp_path / "short")
