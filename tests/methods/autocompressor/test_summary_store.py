"""Stores of summary vectors: what is read again, who wrote it, and encodings that were cut off."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from lmlab.data import Tokenizer
from lmlab.errors import LmlabError, UserError
from lmlab.files import read_mapping, sha256_file, write_json, write_jsonl
from lmlab.methods.autocompressor import AutoCompressor, EncodeJob, SummaryStore, encode, summaries_of
from lmlab.methods.autocompressor.store import encode as encoding
from lmlab.models import (
    ModelConfig,
    SegmentError,
    SoftPrompt,
    StoreMeta,
    StoreRow,
    Transformer,
    find_soft_prompt,
    known_fingerprint,
    save_pretrained,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressor on a small model, and documents of many lengths."""
    place = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(0)
    words = ["summary", "vectors", "stand", "for", "a", "text", "read", "before"]
    texts = [" ".join(rng.choice(words, int(rng.integers(3, 60)))) for _ in range(11)]
    tokenizer = Tokenizer.train(texts, 300)
    shape = ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=1, d_model=32, num_heads=2, max_seq_len=96)
    save_pretrained(Transformer(shape).initialize(0), place / "base")
    tokenizer.save(place / "base")
    compressor = AutoCompressor.from_base(place / "base", summary_length=3, noise=0.5)
    compressor.save(place / "compressor", companions=place / "base")
    write_jsonl(place / "docs.jsonl", ({"id": f"d{n}", "text": text} for n, text in enumerate(texts)))
    return place


def _job(place: Path, out: Path, **changes: Any) -> EncodeJob:
    settings = {"segment": 16, "block": 3, "device": "cpu"} | changes
    return EncodeJob(str(place / "compressor"), str(place / "docs.jsonl"), str(out), **settings)


def _files(store: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in store.iterdir() if each.is_file()}


@pytest.mark.parametrize("independent", [False, True])
def test_what_is_stored_is_what_the_compressor_writes(place: Path, tmp_path: Path, independent: bool) -> None:
    found = encode(_job(place, tmp_path / "s", dtype="fp32", independent=independent))
    compressor, tokenizer = AutoCompressor.load(place / "compressor"), Tokenizer.load(place / "base")
    store = SummaryStore(tmp_path / "s")
    assert found["documents"] == len(store) == 11
    for line in (place / "docs.jsonl").read_text().splitlines():
        document = json.loads(line)
        ids = torch.tensor([tokenizer.encode_prompt(document["text"])])
        if independent:
            fresh = torch.cat([compressor.compress(part).vectors_BPD[0] for part in ids.split(16, 1)])
        else:
            fresh = compressor.compress(ids, segment_lengths=16).vectors_BPD[0]
        assert torch.allclose(store.vectors(document["id"]), fresh, atol=1e-5)
        assert sum(row.tokens for row in store.rows(document["id"])) == ids.shape[1]
    prompt = store.get("d0", "d1")
    assert prompt.length == len(store.vectors("d0")) + len(store.vectors("d1"))
    assert store.search(store.get("d3"), 1)[0] == ("d3", 0.0)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp16", 2e-3), ("int8", 2e-2)])
def test_short_types_keep_vectors_nearly(place: Path, tmp_path: Path, dtype: str, tolerance: float) -> None:
    encode(_job(place, tmp_path / "s", dtype=dtype))
    encode(_job(place, tmp_path / "whole", dtype="fp32"))
    whole = SummaryStore(tmp_path / "whole")
    for id in whole.ids:
        a, b = whole.vectors(id), SummaryStore(tmp_path / "s").vectors(id)
        assert float((a - b).abs().max() / a.abs().max()) < tolerance


def test_an_encoding_that_was_killed_ends_with_the_same_bytes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(_job(place, tmp_path / "whole"))
    calls = iter(range(100))
    run = encoding.summaries_of
    monkeypatch.setattr(encoding, "summaries_of", lambda *given: 1 / 0 if next(calls) == 2 else run(*given))
    with pytest.raises(ZeroDivisionError):
        encode(_job(place, tmp_path / "cut"))
    monkeypatch.undo()
    (tmp_path / "cut" / "part-00002.safetensors").write_bytes(b"half")  # written, and not yet told
    (tmp_path / "cut" / ".part-00002.jsonl.1.tmp").write_bytes(b"ha")  # killed while it was written
    assert len(SummaryStore(tmp_path / "cut").parts()) == 2
    assert encode(_job(place, tmp_path / "cut"))["encoded"] == 5
    assert _files(tmp_path / "cut") == _files(tmp_path / "whole")


def test_many_processes_write_the_same_store(place: Path, tmp_path: Path) -> None:
    encode(_job(place, tmp_path / "one"))
    found = encode(_job(place, tmp_path / "two"), workers=2)
    assert found["encoded"] == 11 and _files(tmp_path / "one") == _files(tmp_path / "two")


def test_batches_change_nothing_that_matters(place: Path) -> None:
    compressor = AutoCompressor.load(place / "compressor")
    texts = [list(range(n)) for n in (5, 16, 40, 33, 16)]
    for (cut, a), (other, b) in zip(
        summaries_of(compressor, texts, 16), summaries_of(compressor, texts, 16, batch=1), strict=True
    ):
        assert cut == other and torch.allclose(a, b, atol=1e-5)


def test_an_attempt_that_wrote_nothing_does_not_decide_how_the_next_one_encodes(place: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.jsonl"
    write_jsonl(long, [{"id": "long", "text": "summary " * 500}])
    job = dataclasses.replace(_job(place, tmp_path / "s"), documents=str(long))
    with pytest.raises(SegmentError, match="Document 'long'"):
        encode(job)
    found = encode(dataclasses.replace(job, independent=True))
    assert found["rows"] == len(SummaryStore(tmp_path / "s").vectors("long")) // 3 > 30
    with pytest.raises(UserError, match="independent True"):
        encode(job)


def test_two_who_make_one_empty_folder_their_store_mix_no_parts(place: Path, tmp_path: Path) -> None:
    """The one that comes second finds nothing yet, and makes the folder its own; either may write first."""
    first = encoding._Worker(_job(place, tmp_path / "s"))
    assert encode(_job(place, tmp_path / "s", segment=8))["encoded"] == 11
    with pytest.raises(UserError, match="was written for another"):
        first.run()
    SummaryStore(tmp_path / "s").verify()
    first = encoding._Worker(_job(place, tmp_path / "t"))
    second = encoding._Worker(_job(place, tmp_path / "t", segment=8))
    with pytest.raises(UserError, match="store for something else"):
        first.run()
    assert second.run()["encoded"] == 11
    SummaryStore(tmp_path / "t").verify()


def test_a_store_of_a_version_that_noted_less_of_its_parts_is_not_gone_on_with(place: Path, tmp_path: Path) -> None:
    """Nothing of it could be read, and who resumed it would not be told."""
    encode(_job(place, tmp_path / "s"))
    path = tmp_path / "s" / "part-00001.json"
    write_json(path, {name: each for name, each in read_mapping(path).items() if name != "meta"})
    with pytest.raises(UserError, match="part-00001' was written for another .* by an earlier version"):
        encode(_job(place, tmp_path / "s"))


def test_a_segment_beyond_the_window_of_a_model_without_positions_stays_one(place: Path) -> None:
    """Such a model reads texts of any length, so that its window cuts none."""
    shape = ModelConfig(vocab_size=64, num_layers=1, d_model=32, num_heads=2, max_seq_len=16, positions="none")
    compressor = AutoCompressor.from_base(Transformer(shape).initialize(0), summary_length=3, init="mean")
    ids = list(range(50))
    ((cut, vectors),) = summaries_of(compressor, [ids], 24, independent=True)
    assert cut == [24, 24, 2] and vectors.shape == (3, 3, 32)
    own = compressor(torch.tensor([ids[:24]]), output_summary=True, logits=False).summary.vectors_BPD
    torch.testing.assert_close(vectors[:1], own, atol=1e-5, rtol=1e-5)


def test_segments_that_are_compressed_by_themselves_are_read_together(place: Path) -> None:
    compressor, sizes, told = AutoCompressor.load(place / "compressor"), [], []
    compressor.register_forward_pre_hook(lambda _, given: sizes.append(tuple(given[0].shape)))
    texts = [list(range(40)), list(range(50, 90))]
    found = summaries_of(compressor, texts, 16, independent=True, batch=8, advance=told.append)
    assert sorted(sizes) == [(2, 8), (4, 16)] and sum(told) == 80
    for ids, (cut, vectors) in zip(texts, found, strict=True):
        assert cut == [16, 16, 8]
        own = [compressor.compress(torch.tensor([part])).vectors_BPD[0] for part in (ids[:16], ids[16:32], ids[32:])]
        assert torch.allclose(vectors.flatten(0, 1), torch.cat(own), atol=1e-5)


def test_other_stores_models_and_settings_are_refused_by_name(place: Path, tmp_path: Path) -> None:
    encode(_job(place, tmp_path / "s"))
    for changes, said in (
        ({"segment": 8}, "segment 16"),
        ({"dtype": "int8"}, "dtype fp16"),
        ({"independent": True}, "independent False"),
        ({"block": 4}, "source"),
    ):
        with pytest.raises(UserError, match=said):
            encode(_job(place, tmp_path / "s", **changes))
    store = SummaryStore(tmp_path / "s")
    meta = store.meta
    store.check(meta.model, meta.width)
    for given, said in (
        ((meta.model, 64), "width 32"),
        (("0" * 64, 32), "model"),
        ((meta.model, 32, meta.compressor, 5), "summary_length 3"),
        ((meta.model, 32, "0" * 64), "compressor"),
    ):
        with pytest.raises(UserError, match=said):
            store.check(*given)
    with pytest.raises(UserError, match="Did you mean"):
        store.get("d99")
    with pytest.raises(UserError, match="no store"):
        SummaryStore(tmp_path)


def test_what_others_wrote_or_changed_is_not_read(place: Path, tmp_path: Path) -> None:
    encode(_job(place, tmp_path / "s"))
    told = read_mapping(tmp_path / "s" / "part-00000.json")
    write_json(tmp_path / "s" / "part-00000.json", told | {"mark": "0" * 64})
    with pytest.raises(UserError, match="were not written by you"):
        SummaryStore(tmp_path / "s").get("d0")
    assert SummaryStore(tmp_path / "s", trust=True).get("d0").length >= 3
    path = tmp_path / "s" / "part-00000.jsonl"
    path.write_text(path.read_text().replace('"tokens": 16', '"tokens": 15', 1))
    with pytest.raises(LmlabError, match="has changed"):
        SummaryStore(tmp_path / "s", trust=True).get("d0")


@pytest.mark.parametrize(
    "tensors",
    [
        {"vectors": torch.ones(1, 2, 4)},
        {"vectors": torch.ones(0, 2, 4)},
        {"vectors": torch.ones(2, 2, 4), "scales": torch.ones(5)},
        {"vectors": torch.ones(())},
        {"others": torch.ones(2, 2, 4)},
    ],
)
def test_parts_that_do_not_fit_their_list_are_damaged(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    again = _with_other_vectors(tmp_path / "s", tensors)
    for read in (lambda: again.get("a"), lambda: again.search(torch.ones(4, 4))):
        with pytest.raises(LmlabError, match=r"part-00000.safetensors' (is damaged|has)"):
            read()


def _with_other_vectors(place: Path, tensors: dict[str, torch.Tensor]) -> SummaryStore:
    """A store by somebody who knows the format, and whom the reader trusts."""
    store = SummaryStore.create(place, StoreMeta(model="m", compressor="c", summary_length=2, width=4))
    store.add("a", torch.ones(4, 4))
    path = place / "part-00000.safetensors"
    path.write_bytes(save(tensors))
    told = read_mapping(path.with_suffix(".json"))
    write_json(path.with_suffix(".json"), told | {"safetensors": sha256_file(path)})
    return SummaryStore(place, trust=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_stored_vectors_that_are_no_finite_numbers_are_not_read(tmp_path: Path, value: float) -> None:
    again = _with_other_vectors(tmp_path / "s", {"vectors": torch.full((2, 2, 4), value)})
    for read in (lambda: again.get("a"), lambda: again.search(torch.ones(4, 4))):
        with pytest.raises(LmlabError, match="no finite numbers"):
            read()


def test_autocompressors_12_the_kernel_of_attention_is_noted_in_the_store(place: Path, tmp_path: Path) -> None:
    """Trained with one kernel and read with another, there was a gap of quality: which one it was must be known."""
    compressor, tokenizer = AutoCompressor.load(place / "compressor"), Tokenizer.load(place / "compressor")
    for backend in ("sdpa", "varlen"):
        compressor.model.attention_backend = backend  # type: ignore[assignment]
        store = SummaryStore.create(tmp_path / backend, encoding.meta_of(compressor, tokenizer, _job(place, tmp_path)))
        assert SummaryStore(store.path).meta.attention == backend


def test_settings_of_a_store_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    SummaryStore.create(tmp_path / "s", StoreMeta(model="m", compressor="c", summary_length=2, width=4))
    told = read_mapping(tmp_path / "s" / "meta.json")
    write_json(tmp_path / "s" / "meta.json", told | {"positions": False, "budget": 4})
    with pytest.raises(UserError, match="budget belongs to vectors with positions"):
        SummaryStore(tmp_path / "s")


@pytest.mark.parametrize("change", [{"positions": False}, {"budget": 4}, {"summary_length": 1, "width": 8}])
def test_how_vectors_are_read_cannot_be_changed_behind_the_mark_of_their_part(tmp_path: Path, change: dict) -> None:
    store = SummaryStore.create(tmp_path / "s", StoreMeta(model="m", compressor="c", summary_length=2, width=4))
    store.add("a", torch.randn(2, 4))
    assert len(SummaryStore(tmp_path / "s").vectors("a")) == 2
    told = read_mapping(tmp_path / "s" / "meta.json")
    write_json(tmp_path / "s" / "meta.json", told | change)
    for trust in (False, True):
        with pytest.raises(LmlabError, match=r"meta\.json' has changed"):
            SummaryStore(tmp_path / "s", trust=trust).get("a")


def test_padding_of_a_soft_prompt_is_not_stored(tmp_path: Path) -> None:
    store = SummaryStore.create(tmp_path / "s", StoreMeta(model="m", compressor="c", summary_length=2, width=4))
    padded = SoftPrompt(torch.randn(1, 4, 4), valid_BP=torch.tensor([[False, False, True, True]]))
    store.add("a", padded)
    torch.testing.assert_close(store.vectors("a"), padded.vectors_BPD[0, 2:], atol=1e-2, rtol=1e-2)


def test_vectors_are_added_by_hand(tmp_path: Path) -> None:
    meta = StoreMeta(model="m", compressor="c", summary_length=2, width=4)
    store = SummaryStore.create(tmp_path / "s", meta)
    store.add("a", torch.ones(4, 4), text="x", tokens=5)
    assert [row.tokens for row in store.rows("a")] == [3, 2] and torch.equal(store.vectors("a"), torch.ones(4, 4))
    for id, vectors, said in (
        ("a", torch.ones(2, 4), "already"),
        ("b", torch.ones(3, 4), "no summaries of 2"),
        ("b", torch.ones(2, 5), "shape"),
        ("b", torch.full((2, 4), torch.nan), "finite"),
    ):
        with pytest.raises(UserError, match=said):
            store.add(id, vectors)
    with pytest.raises(UserError, match="'b' cannot stand for -1 tokens"):
        store.add("b", torch.ones(2, 4), tokens=-1)


def test_documents_that_cannot_be_told_apart_are_refused(
    lmlab: Callable[..., Any], place: Path, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "twice.jsonl", [{"id": "a", "text": "x y"}, {"id": "a", "text": "z"}])
    found = lmlab("compress", "encode", place / "compressor", "--in", tmp_path / "twice.jsonl", "--out", tmp_path / "t")
    assert found.code == 2 and "have the id 'a'" in found.err
    found = lmlab(
        "compress",
        "encode",
        place / "compressor",
        "--in",
        place / "docs.jsonl",
        "--segment",
        16,
        "--out",
        tmp_path / "s",
    )
    assert found.code == 0 and "11 documents" in found.out
    found = lmlab("compress", "encode", place / "base", "--in", place / "docs.jsonl", "--out", tmp_path / "b")
    assert found.code == 2 and "no compressor" in found.err


def _store(folder: Path, model: Transformer, **changes: Any) -> SummaryStore:
    given = {"model": known_fingerprint(model), "compressor": "c", "summary_length": 2, "width": 32} | changes
    return SummaryStore.create(folder, StoreMeta(**given))


@pytest.mark.parametrize(
    "id", ["http://a.org/b", "../x", "a/../b", "a//b", "a/", "./a", "/abs", ".", "..", "x" * 300, "\u00fc \u00df"]
)
def test_a_text_is_found_by_any_printable_id(place: Path, tmp_path: Path, id: str) -> None:
    model = AutoCompressor.load(place / "compressor").model
    store, vectors = _store(tmp_path / "s", model), torch.randn(2, 32).half().float()
    store.add("a", vectors + 1)
    store.add(id, vectors)
    assert torch.equal(find_soft_prompt(f"{tmp_path}/s/{id}", model).vectors_BPD[0], vectors)
    for nothing in ("", "\n", "a\0b", "\ud800"):
        with pytest.raises(UserError, match="is no name for a text"):
            store.add(nothing, vectors)


def test_numbers_that_a_type_cannot_hold_are_refused_before_they_are_written(place: Path, tmp_path: Path) -> None:
    model = AutoCompressor.load(place / "compressor").model
    store = _store(tmp_path / "s", model)
    store.add("small", torch.ones(2, 32))
    with pytest.raises(UserError, match="'big' have numbers up to 1e\\+06, which fp16 cannot hold"):
        store.add("big", torch.full((2, 32), 1e6))
    assert store.ids == ["small"] and store.search(torch.ones(2, 32)) == [("small", 0.0)]
    wide = _store(tmp_path / "int8", model, dtype="int8")
    wide.add("big", torch.full((2, 32), 1e6))
    assert wide.vectors("big").mean().item() == pytest.approx(1e6)


@pytest.mark.parametrize("sought", [torch.ones(4, 16), torch.ones(2, 2, 32), torch.full((2, 32), torch.nan)])
def test_what_cannot_be_sought_is_refused(place: Path, tmp_path: Path, sought: torch.Tensor) -> None:
    store = _store(tmp_path / "s", AutoCompressor.load(place / "compressor").model)
    store.add("a", torch.ones(2, 32))
    with pytest.raises(UserError, match=r"finite vectors \[P, 32\] of one text"):
        store.search(sought)
    with pytest.raises(UserError, match="k 0"):
        store.search(torch.ones(2, 32), 0)
    with pytest.raises(UserError, match="No text"):
        store.get()


def test_texts_added_at_the_same_time_are_all_kept(place: Path, tmp_path: Path) -> None:
    model = AutoCompressor.load(place / "compressor").model
    stores = [_store(tmp_path / "s", model) for _ in range(4)]

    def add(number: int) -> int:
        taken = 0
        for text in range(6):
            stores[number].add(f"{number}/{text}", torch.full((2, 32), float(10 * number + text)))
            try:
                stores[number].add(f"shared/{text}", torch.full((2, 32), float(number)))
                taken += 1
            except UserError:
                pass
        return taken

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(add, range(4))) == 6
    found = SummaryStore(tmp_path / "s")
    assert len(found) == 30
    assert all(float(found.vectors(f"{n}/{k}").mean()) == 10 * n + k for n in range(4) for k in range(6))


def test_a_text_added_to_a_half_encoded_store_takes_no_blocks_place(place: Path, tmp_path: Path) -> None:
    encode(_job(place, tmp_path / "whole"))
    encode(_job(place, tmp_path / "half"))
    for part in (tmp_path / "half").glob("part-0000[1-3].*"):
        part.unlink()
    store = SummaryStore(tmp_path / "half")
    store.add("by hand", torch.ones(3, 32))
    store.add("d7", torch.ones(3, 32))
    with pytest.raises(UserError, match="'d7' was added to the store"):
        encode(_job(place, tmp_path / "half"))
    for file in (tmp_path / "half").glob("part-1000000001.*"):
        file.unlink()
    encode(_job(place, tmp_path / "half"))
    found = _files(tmp_path / "half")
    assert {name: each for name, each in found.items() if "-1000000000" not in name} == _files(tmp_path / "whole")
    assert len(SummaryStore(tmp_path / "half")) == 12


def test_a_part_with_other_texts_than_its_block_is_refused(place: Path, tmp_path: Path) -> None:
    encode(_job(place, tmp_path / "s"))
    for kind in ("safetensors", "jsonl", "json"):
        (tmp_path / "s" / f"part-00001.{kind}").write_bytes((tmp_path / "s" / f"part-00000.{kind}").read_bytes())
    with pytest.raises(UserError, match="holds other texts than block 1"):
        encode(_job(place, tmp_path / "s"))


def test_a_document_that_cannot_be_encoded_is_named(place: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "docs.jsonl", [{"id": "short", "text": "a text"}, {"id": "long", "text": "read " * 900}])
    job = dataclasses.replace(_job(place, tmp_path / "s"), documents=str(tmp_path / "docs.jsonl"))
    with pytest.raises(UserError, match=r"Document 'long': \d+ tokens in \d+ segments of up to 16 need \d+ positions"):
        encode(job)


def test_a_file_without_text_and_an_unknown_text_are_told_shortly(
    lmlab: Callable[..., Any], place: Path, tmp_path: Path
) -> None:
    (tmp_path / "blank.txt").write_text(" \n")
    found = lmlab("compress", "text", place / "compressor", tmp_path / "blank.txt", "--out", tmp_path / "v")
    assert found.code == 2 and "has no text" in found.err and not (tmp_path / "v").exists()
    model = AutoCompressor.load(place / "compressor").model
    store = _store(tmp_path / "s", model)
    row = StoreRow(id="", segment=0, tokens=1, text="", model=store.meta.model, compressor="c")
    store.write_part(0, [row.model_copy(update={"id": f"d{n}"}) for n in range(300)], torch.ones(300, 2, 32))
    with pytest.raises(UserError, match="and 260 more") as refused:
        store.get("zzz")
    assert len(str(refused.value)) < 500
