"""The stage `compress_train`: what it writes, and a training that is cut off and goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lmlab.data import Tokenizer, tokenize_documents
from lmlab.errors import UserError
from lmlab.files import write_jsonl
from lmlab.methods.autocompressor import AutoCompressor
from lmlab.models import ModelConfig, Transformer, save_pretrained

_WORDS = [
    "the",
    "a",
    "of",
    "summary",
    "vector",
    "segment",
    "text",
    "model",
    "reads",
    "writes",
    "long",
    "short",
    "token",
    "value",
    "key",
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, tokens, and a model that has learned nothing."""
    place = tmp_path_factory.mktemp("parts")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(_WORDS, 120)) for _ in range(24)]
    tokenizer = Tokenizer.train(texts, 300)
    write_jsonl(place / "texts.jsonl", ({"id": f"d{n}", "text": text, "domain": "w"} for n, text in enumerate(texts)))
    tokenize_documents(place / "texts.jsonl", tokenizer, place / "tokens")
    shape = ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=1, d_model=32, num_heads=2, max_seq_len=64)
    save_pretrained(Transformer(shape).initialize(0), place / "base")
    tokenizer.save(place / "base")
    return place


def _recipe(parts: Path, path: Path, **changes: Any) -> Path:
    stage = {
        "kind": "compress_train",
        "start": str(parts / "base"),
        "tokens": str(parts / "tokens"),
        "heldout_tokens": str(parts / "tokens"),
        "heldout_rows": 4,
        "seq_len": 64,
        "compressor": {"summary_length": 3, "nested": True},
        "trainer": {"steps": 6, "batch_size": 4, "micro_batch_size": 2, "log_every": 1, "checkpoint_every": 2},
    }
    stage["trainer"] |= {"precision": "fp32", "device": "cpu"} | changes.pop("trainer", {})
    path.write_text(yaml.safe_dump({"name": "c", "stages": {"compressor": stage | changes}}))
    return path


def _base(parts: Path) -> dict[str, Any]:
    """A stage that trains a model."""
    trainer = {"steps": 1, "batch_size": 2, "precision": "fp32", "device": "cpu"}
    shape = {"vocab_size": 300, "num_layers": 1, "d_model": 32, "num_heads": 2, "max_seq_len": 64}
    return {"kind": "train", "tokens": str(parts / "tokens"), "seq_len": 32, "model": shape, "trainer": trainer}


def _losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "compressor" / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows]


def test_of_a_run_that_trained_a_base_too_the_compressor_is_meant(
    lmlab: Callable[..., Any], parts: Path, tmp_path: Path
) -> None:
    """As the recipe for laptops does, whose run every command then takes."""
    told = yaml.safe_load(_recipe(parts, tmp_path / "c.yaml", trainer={"steps": 1}).read_text())
    told["stages"] = {"base": _base(parts), "compressor": told["stages"]["compressor"] | {"start": "base"}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(told))
    run, text = tmp_path / "run", tmp_path / "one.txt"
    done = lmlab("compress", "train", tmp_path / "c.yaml", "--out", run)
    assert done.code == 0, done.err
    text.write_text("the summary of a long text")
    for place in (run, run / "compressor"):
        assert lmlab("compress", "text", place, text, "--out", tmp_path / "v.safetensors").code == 0
        found = lmlab("compress", "encode", place, "--in", text, "--segment", 16, "--out", tmp_path / "s")
        assert found.code == 0, found.err
    assert lmlab("compress", "convert", run, tmp_path / "reference").code == 0
    assert torch.equal(
        AutoCompressor.load(run).summary_embedding_ND, AutoCompressor.load(run / "compressor").summary_embedding_ND
    )
    bare = lmlab("compress", "text", run / "base", text, "--out", tmp_path / "v.safetensors")
    assert bare.code == 2 and "holds a model, but no compressor" in bare.err


def test_a_training_that_is_cut_off_ends_as_one_that_is_not(
    lmlab: Callable[..., Any], parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    recipe = _recipe(parts, tmp_path / "c.yaml")
    assert lmlab("compress", "train", recipe, "--out", whole).code == 0
    from lmlab.methods.autocompressor.training.step import CompressorStep

    calls = iter(range(1000))
    step = CompressorStep.__call__
    monkeypatch.setattr(CompressorStep, "__call__", lambda *given: 1 / 0 if next(calls) == 7 else step(*given))
    assert lmlab("compress", "train", recipe, "--out", cut).code != 0
    monkeypatch.undo()
    half = AutoCompressor.load(cut)  # a training that is not done
    assert half.config.trained_segments == 4 and half.config.nested
    assert lmlab("compress", "train", recipe, "--out", cut).code == 0
    assert _losses(cut) == _losses(whole)
    for name in ("model.safetensors", "compressor.safetensors"):
        a, b = ((run / "compressor" / "model" / name).read_bytes() for run in (cut, whole))
        assert a == b
    compressor = AutoCompressor.load(whole)
    last = AutoCompressor.load(sorted((whole / "compressor" / "checkpoints").glob("step-*"))[-1])
    ids = torch.arange(40)[None] % 30
    assert torch.equal(last.compress(ids).vectors_BPD, compressor.compress(ids).vectors_BPD)
    assert not torch.equal(half.compress(ids).vectors_BPD, compressor.compress(ids).vectors_BPD)
    assert compressor.config.trained_segments == 4 and compressor.config.nested
    vectors = compressor.compress(torch.arange(40)[None] % 30, summary_length=2)
    assert vectors.length == 2


def test_adapters_are_trained_beside_summary_tokens(lmlab: Callable[..., Any], parts: Path, tmp_path: Path) -> None:
    recipe = _recipe(parts, tmp_path / "c.yaml", lora={"rank": 2, "targets": ["query", "value"]})
    assert lmlab("compress", "train", recipe, "--out", tmp_path / "run").code == 0
    base, trained = Transformer_of(parts / "base"), AutoCompressor.load(tmp_path / "run")
    changed = {
        name for name, each in trained.model.state_dict().items() if not torch.equal(each, base.state_dict()[name])
    }
    assert changed == {"blocks.0.attention.query.weight", "blocks.0.attention.value.weight"}
    last = AutoCompressor.load(sorted((tmp_path / "run" / "compressor" / "checkpoints").glob("step-*"))[-1])
    ids = torch.arange(40)[None] % 30
    assert torch.allclose(last.compress(ids).vectors_BPD, trained.compress(ids).vectors_BPD, atol=1e-6)
    assert (tmp_path / "run" / "compressor" / "adapters" / "adapter_model.safetensors").exists()


def Transformer_of(place: Path) -> Transformer:
    from lmlab.models import from_pretrained

    return from_pretrained(place)


def test_a_compressor_that_is_trained_further_keeps_its_scale(
    lmlab: Callable[..., Any], parts: Path, tmp_path: Path
) -> None:
    def train(name: str, **changes: Any) -> Any:
        settings = {"summary_length": 3, "nested": True} | changes.pop("compressor", {})
        recipe = _recipe(parts, tmp_path / "c.yaml", compressor=settings, trainer={"steps": 1}, **changes)
        return lmlab("compress", "train", recipe, "--out", tmp_path / name)

    assert train("first", compressor={"vector_scale": "embedding"}).code == 0
    own = AutoCompressor.load(tmp_path / "first").config.vector_scale
    assert isinstance(own, float) and own != 1
    start = {"start": str(tmp_path / "first" / "compressor")}
    for number, asked in enumerate(({}, {"vector_scale": "embedding"}, {"vector_scale": own})):
        assert train(f"further-{number}", compressor=asked, **start).code == 0
        assert AutoCompressor.load(tmp_path / f"further-{number}").config.vector_scale == own
    refused = train("other", compressor={"vector_scale": 1.0}, **start)
    assert refused.code == 2 and f"has {own:g}" in refused.err
    # as a kind of compression its summary tokens would begin anew
    recipe = _fit(parts, tmp_path / "f.yaml", "summary", {"segment": 12}, **start)
    refused = lmlab("run", recipe, "--out", tmp_path / "kind")
    assert refused.code == 2 and "is a compressor already" in refused.err, refused.err


def test_bad_trainings_are_refused_by_name(lmlab: Callable[..., Any], parts: Path, tmp_path: Path) -> None:
    for changes, said in (
        ({"segments": {"segments": 1}}, "no gradient"),
        ({"compressor": {"summary_length": 40}}, "has no room"),
        ({"segments": {"blocks": 1, "segments": 40}, "compressor": {"summary_length": 1}}, "too short for 40 segments"),
        ({"lora": {"targets": ["nothing"]}}, "nothing"),
        ({"compressor": {"rope_positions": "text_only"}}, "position_budget"),
    ):
        found = lmlab("compress", "train", _recipe(parts, tmp_path / "c.yaml", **changes), "--out", tmp_path / "run")
        assert found.code == 2 and said in found.err and "Traceback" not in found.err, changes
        for each in sorted((tmp_path / "run").rglob("*"), reverse=True):
            each.unlink() if each.is_file() else each.rmdir()


def test_files_that_do_not_belong_together_are_refused(parts: Path, tmp_path: Path) -> None:
    compressor = AutoCompressor.from_base(parts / "base", summary_length=3)
    compressor.save(tmp_path / "one", companions=parts / "base")
    again = AutoCompressor.load(tmp_path / "one")
    ids = torch.arange(20)[None]
    assert torch.equal(again.compress(ids).vectors_BPD, compressor.compress(ids).vectors_BPD)
    with pytest.raises(UserError, match="no compressor"):
        AutoCompressor.load(parts / "base")
    other = Transformer(compressor.model.config).initialize(5)
    save_pretrained(other, tmp_path / "one")
    with pytest.raises(UserError, match="another one than its summary tokens"):
        AutoCompressor.load(tmp_path / "one")


def test_summary_tokens_begin_as_the_end_mark(parts: Path) -> None:
    compressor = AutoCompressor.from_base(parts / "base", summary_length=3, noise=0.0)
    end = compressor.model.embedding.weight[Tokenizer.load(parts / "base").eos_id]
    assert torch.equal(compressor.summary_embedding_ND, end.expand(3, -1))
    for init in ("noise", "mean", "vocab"):
        made = AutoCompressor.from_base(parts / "base", summary_length=3, init=init)  # type: ignore[arg-type]
        rows = made.summary_embedding_ND
        assert bool(torch.isfinite(rows).all()) and not torch.equal(rows[0], rows[1])


def _fit(parts: Path, path: Path, kind: str, settings: dict[str, Any] | None = None, **changes: Any) -> Path:
    stage = {
        "kind": "compress_fit",
        "compressor": kind,
        "settings": {"ratio": 4, **(settings or {})},
        "start": str(parts / "base"),
        "tokens": str(parts / "tokens"),
        "context": 24,
        "continuation": 16,
        "trainer": {"steps": 4, "batch_size": 4, "precision": "fp32", "device": "cpu", "log_every": 1},
    }
    path.write_text(yaml.safe_dump({"name": "f", "stages": {"fit": stage | changes}}))
    return path


_EQUAL = {"random": False}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        # a window of 64: kappa alone, and beside the vectors of three segments
        ({"compressor": {"summary_length": 70}}, "The window of 64 has no room for text"),
        ({"compressor": {"summary_length": 16}}, "The window of 64 has no room for text"),
        # 3 x 12 vectors are read by the last of four segments, which has 32 tokens and needs 68 positions
        ({"compressor": {"summary_length": 12}, "seq_len": 128, "segments": _EQUAL}, "the model's window has 64"),
        ({"seq_len": 600, "segments": {"random": True}}, "too short for 2 segments"),
        ({"seq_len": 3}, "too short for 2 segments"),
        (
            {"compressor": {"summary_length": 2, "rope_positions": "text_only", "position_budget": 63}},
            "The window of 64 has no room for text",
        ),
    ],
)
@pytest.mark.parametrize("promised", [False, True])
def test_a_window_that_does_not_hold_the_segments_is_told_before_anything_is_trained(
    changes: dict[str, Any], said: str, promised: bool, lmlab: Callable[..., Any], parts: Path, tmp_path: Path
) -> None:
    told = yaml.safe_load(_recipe(parts, tmp_path / "c.yaml", **changes).read_text())
    if promised:
        told["stages"] = {"base": _base(parts), "compressor": told["stages"]["compressor"] | {"start": "base"}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(told))
    for how in ([], ["--dry-run"]):
        found = lmlab("run", tmp_path / "c.yaml", "--out", tmp_path / "run", *how)
        assert found.code == 2 and said in found.err, found.err
    assert not (tmp_path / "run" / "base" / "metrics.jsonl").exists()


def test_segments_that_fill_the_window_are_trained(lmlab: Callable[..., Any], parts: Path, tmp_path: Path) -> None:
    """Of four segments of 34 tokens the last reads 3 x 10 vectors and writes none, and the third reads 2 x 10 and
    writes 10: 64 positions.
    """
    changes = {"seq_len": 136, "segments": _EQUAL, "heldout_tokens": None, "trainer": {"steps": 1}}
    recipe = _recipe(parts, tmp_path / "c.yaml", compressor={"summary_length": 10}, **changes)
    done = lmlab("run", recipe, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    changes["seq_len"] = 140
    recipe = _recipe(parts, tmp_path / "c.yaml", compressor={"summary_length": 10}, **changes)
    found = lmlab("run", recipe, "--out", tmp_path / "other", "--dry-run")
    said = "20 vectors before the text, 35 tokens and 10 summary tokens are 65 positions"
    assert found.code == 2 and said in " ".join(found.err.split()), found.err


def test_a_stage_behind_a_kind_knows_its_window(lmlab: Callable[..., Any], parts: Path, tmp_path: Path) -> None:
    told = yaml.safe_load(_fit(parts, tmp_path / "f.yaml", "icae").read_text())
    told["stages"]["second"] = {**told["stages"]["fit"], "start": "fit", "context": 60}
    told["stages"] = {"base": _base(parts), **told["stages"]}
    told["stages"]["fit"]["start"] = "base"
    (tmp_path / "f.yaml").write_text(yaml.safe_dump(told))
    found = lmlab("run", tmp_path / "f.yaml", "--dry-run")
    said = "context 60 and continuation 16 exceed the model's window of 64"
    assert found.code == 2 and said in " ".join(found.err.split()), found.err


@pytest.mark.parametrize("kind", ["anchor_kv", "ot_pool"])
def test_a_kind_is_trained_by_a_recipe_and_compared(
    kind: str, lmlab: Callable[..., Any], parts: Path, tmp_path: Path
) -> None:
    from lmlab.methods.autocompressor.fitting.files import load_kind

    settings = {"train": "lora" if kind == "anchor_kv" else "new", "lora_rank": 2, "autoencode": 0.5, "distill": 0.5}
    recipe = _fit(parts, tmp_path / "f.yaml", kind, settings=settings)
    done = lmlab("run", recipe, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    compressor = load_kind(tmp_path / "run" / "fit" / "model")
    assert compressor.kind == kind and compressor.config.ratio == 4
    fresh = Transformer_of(parts / "base")
    same = all(torch.equal(a, b) for a, b in zip(fresh.parameters(), compressor.model.parameters(), strict=True))
    assert same == (kind == "ot_pool")  # which left the base frozen
    how = ("--task", "arithmetic", "--length", "60", "--contexts", "2", "--questions", "2", "--ratio", "4")
    out = tmp_path / "compared"
    trained = ("--trained", tmp_path / "run" / "fit" / "model", "--kind", "truncate")
    done = lmlab("compress", "compare", parts / "base", *how, *trained, "--out", out)
    assert done.code == 0, done.err
    table = json.loads((out / "table.json").read_text())
    assert [line["kind"] for line in table["lines"]] == ["none", "full", "truncate", kind]
    weights = tmp_path / "run" / "fit" / "model" / "kind.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    short = lmlab(
        "compress", "compare", parts / "base", "--task", "arithmetic", "--length", "9", "--out", tmp_path / "s"
    )
    assert short.code == 2 and "no room for two prices" in short.err
    assert "damaged" in lmlab("compress", "compare", parts / "base", *how, *trained, "--out", tmp_path / "o").err


def test_kinds_that_cannot_be_trained_so_are_refused(lmlab: Callable[..., Any], parts: Path, tmp_path: Path) -> None:
    for kind, changes, said in (
        ("prune:snap", {}, "learns nothing"),
        ("iace", {}, "no kind of compression 'iace'"),
        ("icae", {"context": 60}, "exceed the model's window of 64"),
        ("icae", {"settings": {"ratios": 3}}, "ratios"),
    ):
        recipe = _fit(parts, tmp_path / "f.yaml", kind, **changes)
        found = lmlab("run", recipe, "--out", tmp_path / "run")
        assert found.code == 2 and said in found.err, found.err
        found = lmlab("run", recipe, "--dry-run")  # before earlier stages train
        assert found.code == 2 and said in found.err, found.err
    stage = {"kind": "compress_compare", "model": "base"}
    for kinds, said in ((["prune:snip"], "'prune:snip'"), (["truncate", "icae"], "'icae' must be trained")):
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({"name": "c", "stages": {"c": stage | {"kinds": kinds}}}))
        found = lmlab("run", tmp_path / "c.yaml", "--dry-run")
        assert found.code == 2 and said in found.err, found.err


def test_a_kind_that_is_trained_further_keeps_what_it_has_learned(
    lmlab: Callable[..., Any], parts: Path, tmp_path: Path
) -> None:
    """Its model has learned to read what its own weights write, in their scale: others would begin anew, unseen."""
    from lmlab.methods.autocompressor.fitting.files import load_kind

    def fit(name: str, kind: str = "icae", **changes: Any) -> Any:
        recipe = _fit(parts, tmp_path / "f.yaml", kind, **changes)
        return lmlab("run", recipe, "--out", tmp_path / name)

    def trained(name: str) -> Any:
        return load_kind(tmp_path / name / "fit" / "model")

    assert fit("first", settings={"vector_scale": "embedding", "seed": 3, "tokens": 6}).code == 0
    first, start = trained("first"), {"start": str(tmp_path / "first" / "fit")}
    still = {"steps": 1, "batch_size": 4, "precision": "fp32", "device": "cpu", "optimizer": {"learning_rate": 1e-12}}
    for number, asked in enumerate(({}, {"vector_scale": "embedding"}, {"autoencode": 0.5})):
        done = fit(f"further-{number}", settings={"tokens": 6, **asked}, trainer=still, **start)
        assert done.code == 0, done.err
        further = trained(f"further-{number}")
        assert further.config.vector_scale == first.config.vector_scale != 1
        assert torch.allclose(further.table_MD, first.table_MD, atol=1e-6)
    own = f"has {first.config.vector_scale!r}"
    for asked, said in (({"vector_scale": 1.0}, own), ({"tokens": 5}, "table_MD is [6, 32] there, and [5, 32]")):
        refused = fit("refused", settings={"tokens": 6, **asked}, **start)
        assert refused.code == 2 and said in refused.err, refused.err
    # a file of a version that knew no scale is of a model that read its states as they are
    place = tmp_path / "first" / "fit" / "model" / "kind.json"
    about = json.loads(place.read_text())
    del about["settings"]["vector_scale"]
    place.write_text(json.dumps(about))
    refused = fit("refused", settings={"tokens": 6, "vector_scale": 0.5}, **start)
    assert refused.code == 2 and "vector_scale 0.5" in refused.err and "has 1.0" in refused.err, refused.err
    # of another kind it is a plain model
    assert fit("other", "bi_tokens", settings={"tokens": 5}, trainer=still, **start).code == 0
    assert trained("other").config.vector_scale == 1


def test_a_comparison_is_a_stage_with_its_table(lmlab: Callable[..., Any], parts: Path, tmp_path: Path) -> None:
    stage = {"kind": "compress_compare", "model": str(parts / "base"), "tasks": ["arithmetic"], "lengths": [60]}
    stage |= {"contexts": 2, "questions": 2, "ratios": [2], "kinds": ["truncate", "prune:random"]}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"name": "c", "stages": {"kinds": stage}}))
    done = lmlab("run", tmp_path / "c.yaml", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    table = json.loads((tmp_path / "run" / "kinds" / "comparison" / "table.json").read_text())
    assert len(table["lines"]) == 4
    assert lmlab("report", tmp_path / "run").code == 0
    (page,) = (tmp_path / "run").glob("*.html")
    assert "prune:random" in page.read_text()
