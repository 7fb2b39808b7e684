"""Perplexity after compressed context: every line is what it says, and an attempt that was cut off goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressors import small

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.files import write_jsonl
from lmlab.methods.autocompressor import AutoCompressor
from lmlab.methods.autocompressor.measure.ppl import Measurement, PplSettings, _retained, measure_ppl, summarize
from lmlab.models import ModelConfig, Transformer, save_pretrained

_TEXTS = [(f"d{n}", torch.randint(0, 37, (30,), generator=torch.Generator().manual_seed(n)).tolist()) for n in range(5)]


def test_lines_are_what_they_say() -> None:
    compressor = small("llama")
    settings = PplSettings((0, 4, 12), 8, 8, ("shuffled", "truncate", "full"))
    found = Measurement(compressor, settings).read(_TEXTS[0][1], _TEXTS[1][1])
    ids, other = (torch.tensor([each[1][:20]]) for each in _TEXTS[:2])
    text = ids[:, 12:]

    def loss(before: Any = None, plain: torch.Tensor | None = None) -> float:
        logits = compressor(text if plain is None else torch.cat((plain, text), 1), soft_prompt=before).logits_BTV
        assert logits is not None
        return float(torch.nn.functional.cross_entropy(logits[0, -8:-1], text[0, 1:]))

    expected = {
        "summary/0": loss(),
        "summary/4": loss(compressor.compress(ids[:, 8:12], segment_lengths=[4])),
        "summary/12": loss(compressor.compress(ids[:, :12], segment_lengths=[4, 8])),
        "shuffled/12": loss(compressor.compress(other[:, :12], segment_lengths=[4, 8])),
        "truncate/4": loss(plain=ids[:, 9:12]),
        "truncate/12": loss(plain=ids[:, 6:12]),
        "full/12": loss(plain=ids[:, :12]),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert set(found) == set(expected) | {"shuffled/4", "full/4"}


def test_truncation_has_as_many_tokens_as_there_are_vectors() -> None:
    """Replaced vectors are those of one segment, however many there were."""
    found = Measurement(small("llama", accumulate=False), PplSettings((0, 3, 12), 8, 4, ("truncate", "full")))
    losses, ids = found.read(_TEXTS[0][1], _TEXTS[1][1]), torch.tensor([_TEXTS[0][1][:20]])
    logits = small("llama", accumulate=False)(ids[:, 9:]).logits_BTV
    assert logits is not None
    expected = torch.nn.functional.cross_entropy(logits[0, -8:-1], ids[0, 13:])
    assert losses["truncate/12"] == pytest.approx(float(expected))
    assert losses["truncate/3"] == losses["full/3"]


def test_vectors_of_the_document_before_are_not_made_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = PplSettings((0, 4, 12), 8, 8, ("shuffled", "rmt"))
    others = {"rmt": small("llama", accumulate=False)}
    pairs = [(_TEXTS[n][1], _TEXTS[n - 1][1]) for n in range(3)]
    alone = [Measurement(small("llama"), settings, others).read(*pair) for pair in pairs]
    calls, compress = list[int](), AutoCompressor.compress
    monkeypatch.setattr(
        AutoCompressor, "compress", lambda self, *given, **more: calls.append(1) or compress(self, *given, **more)
    )
    measurement = Measurement(small("llama"), settings, others)
    assert [measurement.read(*pair) for pair in pairs] == alone
    assert len(calls) == 3 * 2 * 2 + 2  # each text with two contexts by two models, and the first one's other


def test_what_does_not_fit_the_window_is_left_out_and_said(tmp_path: Path) -> None:
    compressor = small("opt")
    measurement = Measurement(compressor, PplSettings((0, 28), 2, 14, ("full",)))
    long = [(id, ids * 2) for id, ids in _TEXTS]
    found = measure_ppl(Measurement(compressor, PplSettings((0, 40), 8, 20, ("full", "truncate"))), long, tmp_path)
    assert list(found["refused"]) == ["full/40"] and "32 positions" in found["refused"]["full/40"]
    assert set(found["lines"]) == {"summary/0", "summary/40", "truncate/40"}
    assert "full/28" in measurement.read(*(ids for _, ids in _TEXTS[:2]))
    # an attempt that finds everything measured says it too, and other texts by the same names are other texts
    again = Measurement(compressor, PplSettings((0, 40), 8, 20, ("full", "truncate")))
    assert measure_ppl(again, long, tmp_path) == found
    with pytest.raises(UserError, match="other documents"):
        measure_ppl(again, [(id, ids[::-1]) for id, ids in long], tmp_path)


def test_an_attempt_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compressor = small("llama")
    settings = PplSettings((0, 12), 8, 6, ("shuffled", "truncate", "full", "rmt"))
    others = {"rmt": small("llama", accumulate=False)}
    whole = measure_ppl(Measurement(compressor, settings, others), _TEXTS, tmp_path / "whole")
    calls, read = iter(range(100)), Measurement.read
    monkeypatch.setattr(Measurement, "read", lambda *given: 1 / 0 if next(calls) == 2 else read(*given))
    with pytest.raises(ZeroDivisionError):
        measure_ppl(Measurement(compressor, settings, others), _TEXTS, tmp_path / "cut")
    assert measure_ppl(Measurement(compressor, settings, others), _TEXTS, tmp_path / "cut") == whole
    retained = whole["gain_retained"]["12"]
    lines = {name: cell["loss"] for name, cell in whole["lines"].items()}
    none = lines["summary/0"]
    gained = whole["lines"]["full/12"]["gain"]["low"] > 0  # else a share of it is noise
    share = (none - lines["summary/12"]) / (none - lines["full/12"]) if gained else None
    assert retained["share"] == (None if share is None else pytest.approx(share))
    assert whole["lines"]["truncate/12"]["summary_better_by"]["nats"] == pytest.approx(
        lines["truncate/12"] - lines["summary/12"]
    )
    with pytest.raises(UserError, match="other documents, models or settings"):
        measure_ppl(Measurement(compressor, PplSettings((0, 6), 8, 6)), _TEXTS, tmp_path / "cut")
    with pytest.raises(UserError, match="0 documents have 112"):
        measure_ppl(Measurement(compressor, PplSettings((0, 104), 8, 6)), _TEXTS, tmp_path / "none")
    with pytest.raises(UserError, match="--rmt"):
        Measurement(compressor, settings)


def test_the_command_prints_every_line(lmlab: Callable[..., Any], tmp_path: Path) -> None:
    words = ["summary", "vectors", "stand", "for", "a", "text", "that", "was", "read", "before", "it"]
    texts = [" ".join(words[(n * i) % len(words)] for i in range(1, 80)) for n in range(1, 6)]
    tokenizer = Tokenizer.train(texts, 290)
    shape = ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=1, d_model=32, num_heads=2, max_seq_len=128)
    save_pretrained(Transformer(shape).initialize(0), tmp_path / "base")
    tokenizer.save(tmp_path / "base")
    AutoCompressor.from_base(tmp_path / "base", summary_length=2).save(tmp_path / "c", companions=tmp_path / "base")
    rows = ({"id": f"d{n}", "text": text, "domain": "words", "group": ""} for n, text in enumerate(texts))
    write_jsonl(tmp_path / "docs.jsonl", rows)
    command = ("compress", "ppl", tmp_path / "c", "--data", tmp_path / "docs.jsonl", "--context", "0,16,32")
    found = lmlab(*command, "--target", 16, "--segment", 16, "--base", tmp_path / "base", "--out", tmp_path / "ppl")
    assert found.code == 0, found.err
    for line in ("summary", "shuffled", "truncate", "full", "base"):
        assert line in found.out
    told = json.loads((tmp_path / "ppl" / "ppl.json").read_text())
    assert told["lines"]["base/0"]["loss"] == pytest.approx(told["lines"]["summary/0"]["loss"])
    assert told["lines"]["base/32"]["loss"] == pytest.approx(told["lines"]["full/32"]["loss"])
    found = lmlab("compress", "report", tmp_path / "ppl", "--out", tmp_path / "page.html")
    assert found.code == 0 and "shuffled" in (tmp_path / "page.html").read_text()
    found = lmlab("compress", "report", tmp_path, "--out", tmp_path / "page.html")
    assert found.code == 2 and "ppl.json" in found.err
    stage = {"kind": "compress_ppl", "compressor": str(tmp_path / "c"), "documents": str(tmp_path / "docs.jsonl")}
    stage |= {"context": [16, 32], "target": 16, "segment": 16, "base": str(tmp_path / "base")}
    (tmp_path / "r.yaml").write_text(json.dumps({"name": "r", "stages": {"ppl": stage, "report": {"kind": "report"}}}))
    assert lmlab("run", tmp_path / "r.yaml", "--out", tmp_path / "run").code == 0
    assert json.loads((tmp_path / "run" / "ppl" / "ppl.json").read_text())["lines"] == told["lines"]
    twice = [{"id": "d", "text": text} for text in texts]
    write_jsonl(tmp_path / "twice.jsonl", twice)  # the last one's figures would stand for all
    given = ("compress", "ppl", tmp_path / "c", "--data", tmp_path / "twice.jsonl", "--context", "16", "--target", 16)
    found = lmlab(*given, "--out", tmp_path / "twice")
    assert found.code == 2 and "have the id 'd'" in found.err
    found = lmlab(*command, "--baseline", "nothing", "--out", tmp_path / "other")
    assert found.code == 2 and "baseline" in found.err


def test_a_model_beside_gains_over_its_own_loss_without_context() -> None:
    row = {"summary/0": 3.0, "summary/8": 2.5, "truncate/8": 2.75, "base/0": 4.0, "base/8": 3.0}
    lines = summarize([{"id": "a", **row}, {"id": "b", **row}], PplSettings((0, 8), 8, 8))["lines"]
    gains = {name: cell["gain"]["nats"] for name, cell in lines.items() if "gain" in cell}
    assert gains == {"summary/8": 0.5, "truncate/8": 0.25, "base/8": 1.0}
    assert lines["base/8"]["summary_better_by"]["nats"] == 0.5


def test_a_share_is_of_a_gain_that_can_be_told_from_zero() -> None:
    random = np.random.default_rng(0)
    none = random.normal(4.0, 0.1, 40)
    told = _retained(none, none - 0.2, none - 0.4 - random.normal(0.0, 0.05, 40))
    assert told["share"] == pytest.approx(0.5, abs=0.05) and told["low"] < 0.5 < told["high"]
    noise = _retained(none, none + 0.4, none - 0.001 + random.normal(0.0, 0.05, 40))
    assert noise == {"share": None, "low": None, "high": None}
