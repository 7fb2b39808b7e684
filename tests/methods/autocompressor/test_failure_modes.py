"""What goes wrong with summaries, and what is done about it: vectors of others, precision, collapse, threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from compressors import small
from torch import Tensor

from lmlab.data import Tokenizer
from lmlab.errors import LmlabError, UserError
from lmlab.files import write_jsonl
from lmlab.methods.autocompressor import AutoCompressor, CompressorConfig, EncodeJob, SegmentsConfig, encode
from lmlab.methods.autocompressor.measure.icl.icl import Prompting, predict
from lmlab.methods.autocompressor.measure.icl.templates import TASKS
from lmlab.methods.autocompressor.training.step import CompressorStep
from lmlab.models import (
    IGNORE,
    ModelConfig,
    SoftPrompt,
    Transformer,
    load_soft_prompt,
    save_pretrained,
    save_soft_prompt,
)

_TEXTS = ["vectors of one model mean nothing to another one", "a store says which weights read it"]


def _compressor(place: Path, name: str, kappa: int = 3, seed: int = 0, **shape: Any) -> Path:
    """The directory of a compressor, with the one tokenizer of all of them."""
    if not (place / "tokenizer").exists():
        Tokenizer.train(_TEXTS, 300).save(place / "tokenizer")
    tokenizer = Tokenizer.load(place / "tokenizer")
    sizes = {"vocab_size": tokenizer.vocab_size, "num_layers": 1, "d_model": 32, "num_heads": 2, "max_seq_len": 128}
    model = Transformer(ModelConfig(**(sizes | shape))).initialize(seed)
    save_pretrained(model, place / name)
    tokenizer.save(place / name)
    compressor = AutoCompressor(model, CompressorConfig(summary_length=kappa))
    with torch.no_grad():
        compressor.summary_embedding_ND.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    compressor.save(place / name)
    return place / name


def _batch(ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "labels": torch.cat((ids[:, 1:], torch.full((len(ids), 1), IGNORE)), 1)}


def test_a_store_of_another_model_kappa_or_width_is_refused_by_name(lmlab: Callable[..., Any], tmp_path: Path) -> None:
    """By whoever writes more into it, and by whoever would read it."""
    write_jsonl(tmp_path / "docs.jsonl", [{"id": f"d{n}", "text": text} for n, text in enumerate(_TEXTS)])
    own = _compressor(tmp_path, "own")
    encode(EncodeJob(str(own), str(tmp_path / "docs.jsonl"), str(tmp_path / "s"), segment=64, independent=True))
    others = {
        "model": _compressor(tmp_path, "weights", seed=1),
        "summary_length": _compressor(tmp_path, "kappa", kappa=5),
        "width": _compressor(tmp_path, "width", d_model=48),
    }
    docs = ("--data", tmp_path / "docs.jsonl", "--passages", tmp_path / "docs.jsonl", "--store", tmp_path / "s")
    sizes = ("--k", 1, "--context", 4, "--continuation", 4)
    for field, other in others.items():
        encoding = ("--in", tmp_path / "docs.jsonl", "--segment", 64, "--independent", "--out", tmp_path / "s")
        written = lmlab("compress", "encode", other, *encoding)
        assert written.code == 2 and f"has {field} " in written.err, written.err
        read = lmlab("compress", "rag", other, *docs, *sizes, "--out", tmp_path / f"rag-{field}")
        assert read.code == 2 and f"has {field} " in read.err and "mean nothing to it" in read.err, read.err
        before = ("generate", "--model", other, "a", "--max-new-tokens", 2, "--soft-prompt", tmp_path / "s" / "d0")
        generated = lmlab(*before)
        if field == "summary_length":  # the same weights read vectors, however many there are
            assert generated.code == 0, generated.err
        else:
            assert generated.code == 2 and f"has {field} " in generated.err, generated.err
    lines = ("--lines", "fused")  # of two texts none is left that is neither the text nor found for it
    assert lmlab("compress", "rag", own, *docs, *sizes, *lines, "--out", tmp_path / "rag").code == 0


def test_vectors_that_are_no_finite_numbers_or_of_another_type_are_refused(ids: Tensor, tmp_path: Path) -> None:
    compressor = small().float()
    with pytest.raises(UserError, match="no finite number"):
        compressor(ids, soft_prompt=torch.ones(1, 3, 16, dtype=torch.long))
    vectors = torch.ones(1, 3, 16)
    half = compressor(ids, soft_prompt=vectors.half()).logits_BTV  # what a store keeps is read in the model's type
    assert torch.equal(half, compressor(ids, soft_prompt=vectors).logits_BTV)
    vectors[0, 1, 2] = torch.inf
    save_soft_prompt(SoftPrompt(vectors), tmp_path / "v.safetensors", compressor.model)
    with pytest.raises(LmlabError, match="not finite"):
        load_soft_prompt(tmp_path / "v.safetensors", compressor.model)


def test_summary_tokens_and_their_gradients_are_fp32_beside_a_model_in_bf16(ids: Tensor) -> None:
    compressor = AutoCompressor(small().model.bfloat16(), CompressorConfig(summary_length=3))
    torch.nn.init.normal_(compressor.summary_embedding_ND)
    assert compressor.summary_embedding_ND.dtype == torch.float32
    CompressorStep(SegmentsConfig(random=False))(compressor.train(), _batch(ids))
    gradient = compressor.summary_embedding_ND.grad
    assert gradient is not None and gradient.dtype == torch.float32 and float(gradient.abs().sum()) > 0
    # a step that bf16 would round away is kept
    before = compressor.summary_embedding_ND.detach().clone()
    with torch.no_grad():
        compressor.summary_embedding_ND += 1e-4
    assert bool((compressor.summary_embedding_ND != before).all())
    assert compressor.eval().compress(ids, segment_lengths=8).vectors_BPD.dtype == torch.bfloat16


def test_vectors_that_are_all_alike_are_said_once(ids: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    compressor = small("opt").train()  # without positions identical rows are told apart by the causal order alone
    step = CompressorStep(SegmentsConfig(random=False))
    healthy = step(compressor, _batch(ids)).sums
    assert float(healthy["summary/cosine"][0]) < 0.99 and float(healthy["summary/norm"][0]) > 0
    assert "all alike" not in capsys.readouterr().err
    with torch.no_grad():
        compressor.summary_embedding_ND.copy_(100 * compressor.summary_embedding_ND[:1].expand(3, -1).clone())
    for _ in range(2):
        assert float(step(compressor, _batch(ids)).sums["summary/cosine"][0]) > 0.99
    assert capsys.readouterr().err.count("all alike") == 1


def test_threads_that_share_a_compressor_do_not_share_what_they_read(ids: Tensor) -> None:
    """The state of a pass stands in no object that another pass changes."""
    compressor = small("gqa")
    texts = [
        torch.randint(0, 37, (1, length), generator=torch.Generator().manual_seed(length)) for length in range(9, 33)
    ]
    alone = [compressor.compress(each, segment_lengths=5).vectors_BPD for each in texts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda each: compressor.compress(each, segment_lengths=5).vectors_BPD, texts))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_predictions_read_no_label_of_a_test(tmp_path: Path) -> None:
    place = _compressor(tmp_path, "c")
    prompting = Prompting(AutoCompressor.load(place), Tokenizer.load(place), TASKS["copa"])
    items = [
        {"premise": f"it {word}", "choice1": f"a {word} one", "choice2": f"no {word}", "label": number % 2}
        for number, word in enumerate(("rained", "stopped", "went", "came"))
    ]
    swapped = [{**item, "label": 1 - item["label"]} for item in items]
    for calibrate in (False, True):  # COPA's emptied items are made from each test
        found = [predict(prompting, each, None, items[:1], calibrate) for each in (items, swapped)]
        assert found[0] == found[1]


def test_a_fully_padded_segment_leaves_no_vectors_to_be_read(ids: Tensor) -> None:
    for kind in ("opt", "gqa", "moe"):
        compressor, mask = small(kind), torch.ones(2, 24, dtype=torch.bool)
        mask[0, 8:16] = False
        found = compressor.compress(ids, mask, segment_lengths=8)
        assert found.valid_BP is not None and found.valid_BP.sum(1).tolist() == [6, 9]
        changed = found.vectors_BPD.clone()
        changed[0, 3:6] += 7
        prompts = [SoftPrompt(vectors, found.positions, found.valid_BP) for vectors in (found.vectors_BPD, changed)]
        a, b = (compressor(ids[:, :6], soft_prompt=prompt).logits_BTV for prompt in prompts)
        assert torch.allclose(a, b, atol=1e-12)
