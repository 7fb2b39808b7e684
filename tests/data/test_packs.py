"""Packing: the published packer's sequences, every token accounted for, and rows that training takes."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from corpora import make_corpus, small_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.data import (
    MDSShard,
    MDSWriter,
    PackAccount,
    PackConfig,
    PackRows,
    TokenDocument,
    TokenSource,
    largest_remainder,
    pack,
    parse_stream,
    peek,
    plan_mix,
    read_mds_index,
    write_packs,
)
from lmlab.errors import UserError
from lmlab.files import DamagedError

ORACLE = [5, 3, 9, 20, 2]


def _documents(lengths, masked=False):
    """Documents whose tokens are all different, so that each says where it came from."""
    start = 100
    for number, length in enumerate(lengths):
        tokens = np.arange(start, start + length, dtype=np.uint32)
        yield TokenDocument(tokens, f"d{number % 3}", (tokens % 2).astype(np.uint8) if masked else None)
        start += length


def _indices(config):
    account = PackAccount()
    return [each.indices.tolist() for each in pack(_documents(ORACLE), config, account)], account


def test_the_published_packer_gives_the_same_sequences():
    default, account = _indices(PackConfig(pack_length=8))
    assert default == [[[0, 5], [5, 8]], [[0, 8]], [[0, 1], [1, 8]], [[0, 8]]]
    assert account.dropped["left_over"] == 7
    intact, account = _indices(PackConfig(pack_length=8, intact=True))
    assert intact == [[[0, 5], [5, 8]], [[0, 8]], [[0, 8]]]
    assert account.dropped["left_over"] == 2
    chunks, account = _indices(PackConfig(pack_length=8, min_chunk_length=8))
    assert chunks == [[[0, 5], [5, 8]], [[0, 8]], [[0, 8]], [[0, 8]]]
    assert account.dropped["left_over"] == 2


def test_short_documents_are_dropped_at_entry_only_where_that_is_asked_for():
    found, account = _indices(PackConfig(pack_length=8, min_chunk_length=8, min_doc_length=8))
    assert found == [[[0, 8]], [[0, 8]], [[0, 8]]]
    assert dict(account.dropped) == {"document": 10, "chunk": 5}


def test_overlap_repeats_the_last_tokens_after_the_middle_token():
    config = PackConfig(pack_length=8, overlap=3, middle=7)
    (first, second, third) = pack(_documents([8, 8]), config)
    assert first.tokens.tolist() == list(range(100, 108)) and first.indices.tolist() == [[0, 8]]
    assert second.tokens.tolist() == [7, 105, 106, 107, 108, 109, 110, 111]  # though the first document had ended
    assert second.indices.tolist() == [[0, 4], [4, 8]]
    assert third.tokens.tolist()[:4] == [7, 109, 110, 111] and third.tokens.tolist()[4:] == [112, 113, 114, 115]
    assert third.indices.tolist() == [[0, 8]]


def test_special_tokens_are_added_where_they_are_missing():
    documents = [TokenDocument(np.array(ids, np.uint32)) for ids in ([1, 10, 2], [10, 11], [1, 12], [13, 2])]
    (packed,) = pack(documents, PackConfig(pack_length=13, bos=1, eos=2))
    assert packed.tokens.tolist() == [1, 10, 2, 1, 10, 11, 2, 1, 12, 2, 1, 13, 2]
    (chunk,) = list(pack([TokenDocument(np.arange(10, 17, dtype=np.uint32))], PackConfig(pack_length=4, middle=9)))[1:]
    assert chunk.tokens.tolist() == [9, 14, 15, 16]


def test_best_fit_puts_a_document_where_it_leaves_the_least_room():
    config = PackConfig(pack_length=10, mode="best_fit", bins=2)
    first, second = pack(_documents([6, 7, 3, 4]), config)
    assert first.indices.tolist() == [[0, 7], [7, 10]] and second.indices.tolist() == [[0, 6], [6, 10]]
    account = PackAccount()
    found = list(pack(_documents([6, 7, 9]), config, account))  # fits nowhere: the emptiest overflows
    assert [each.indices.tolist() for each in found] == [[[0, 6], [6, 10]]]
    assert account.cut == 1 and account.dropped["left_over"] == 7 + 5


def test_splitting_cuts_the_longest_lengths_first_and_packs_each_by_itself():
    account = PackAccount()
    config = PackConfig(pack_length=8, mode="split", lengths=(4, 8))
    found = [(each.subset, each.tokens.tolist()) for each in pack(_documents([13, 5, 3, 8]), config, account)]
    assert found == [
        ("8-8", list(range(100, 108))),
        ("4-8", [*range(108, 112), *range(113, 117)]),
        ("8-8", list(range(121, 129))),
    ]
    assert account.dropped["chunk"] == 1 + 1 + 3 and account.cut == 2


@settings(max_examples=150)
@given(
    lengths=st.lists(st.integers(0, 50), max_size=30),
    pack_length=st.integers(4, 20),
    mode=st.sampled_from(["greedy", "best_fit", "split"]),
    intact=st.booleans(),
    overlap=st.integers(0, 2),
    specials=st.booleans(),
    minimum=st.integers(1, 8),
    masked=st.booleans(),
)
def test_every_token_is_packed_once_or_accounted_for(
    lengths, pack_length, mode, intact, overlap, specials, minimum, masked
):
    marks = {"bos": 1, "eos": 2, "middle": 3} if specials else {}
    config = PackConfig(
        pack_length=pack_length,
        mode=mode,
        intact=intact,
        overlap=0 if intact else overlap,
        min_doc_length=minimum,
        min_chunk_length=minimum,
        bins=3,
        lengths=(pack_length, 4) if mode == "split" else (),
        **marks,
    )
    account, seen = PackAccount(), []
    for packed in pack(_documents(lengths, masked), config, account):
        borders = packed.indices.tolist()
        assert borders[0][0] == 0 and borders[-1][1] == pack_length
        assert all(a[1] == b[0] for a, b in pairwise(borders)) and all(a < b for a, b in borders)
        own = packed.tokens >= 100
        if masked:
            assert (packed.mask[own] == packed.tokens[own] % 2).all()
        for start, stop in borders:
            piece = packed.tokens[start:stop]
            seen.append(piece[piece >= 100])
    kept = np.concatenate([*seen, np.empty(0, np.uint32)])
    assert account.tokens + account.special + account.repeats == account.packed + sum(account.dropped.values())
    if not config.overlap:
        assert len(set(kept.tolist())) == len(kept)  # no token twice
    if mode == "greedy":  # the input's order is kept
        new = kept if not config.overlap else np.unique(kept)
        assert (np.diff(new.astype(np.int64)) > 0).all()
    assert account.sequences * pack_length == account.packed


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("packs"))


def test_packed_files_are_read_back_as_rows_without_labels_across_documents(corpus, tmp_path):
    write_packs([str(corpus.directory)], PackConfig(pack_length=64), tmp_path / "packs", "zstd")
    tokens = np.concatenate([shard.tokens for shard in corpus.shards]).astype(np.int64)
    rows = PackRows(tmp_path / "packs", 64, corpus.tokenizer.vocab_size)
    assert len(rows) == len(tokens) // 64
    starts = set(np.cumsum([0, *(len(document.tokens) for document in TokenSource(str(corpus.directory)))]).tolist())
    for number in range(len(rows)):
        row, first = rows[number], number * 64
        assert row["input_ids"].tolist() == tokens[first : first + 64].tolist()
        for place in range(64):
            ends = place == 63 or first + place + 1 in starts
            assert row["labels"][place] == (-100 if ends else tokens[first + place + 1])
            same = place > 0 and row["document_ids"][place] == row["document_ids"][place - 1]
            assert same == (place > 0 and first + place not in starts)
    assert rows.stored_tokenizer().fingerprint == small_tokenizer().fingerprint
    both = PackRows(tmp_path / "packs", 128)
    assert len(both) == len(rows) // 2 and both[0]["input_ids"].tolist() == tokens[:128].tolist()
    assert both[0]["document_ids"][64] > both[0]["document_ids"][63]  # a sequence ends a document


def test_a_mask_of_what_is_learned_is_kept(tmp_path):
    rows = [{"input_ids": [*range(10, 18)], "mask": [0, 0, 1, 1, 0, 1, 1, 1], "domain": "chat"}]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_packs([str(tmp_path / "chats.jsonl")], PackConfig(pack_length=8, intact=True), tmp_path / "packs")
    assert PackRows(tmp_path / "packs", 8)[0]["labels"].tolist() == [-100, 12, 13, -100, 15, 16, 17, -100]


SAMPLE = {"domain": "books", "input_ids": np.arange(8), "indices": [[0, 3], [3, 8]], "length": 8}
COLUMNS = {"domain": "str", "input_ids": "ndarray:uint32", "indices": "ndarray:uint32", "length": "uint64"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"indices": [[0, 3], [2, 8]]}, "indices do not rise"),
        ({"indices": [[0, 3], [3, 9]]}, "indices reach to 9 of 8 tokens"),
        ({"input_ids": np.arange(7)}, "it has 7 tokens, the others 8"),
        ({"input_ids": np.arange(93, 101)}, "it has the token 100, and the vocabulary 100"),
    ],
)
def test_a_sequence_that_is_wrong_is_named(tmp_path, change, says):
    with MDSWriter(COLUMNS, tmp_path) as writer:
        writer.write(SAMPLE)
        writer.write(SAMPLE | change)
    rows = PackRows(tmp_path, 8, vocab_size=100)
    assert rows[0]["document_ids"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    with pytest.raises(DamagedError, match=r"shard\.00000\.mds:1' is damaged: " + says):
        rows[1]


def test_a_mask_of_another_length_is_named(tmp_path):
    with MDSWriter({**COLUMNS, "mask": "ndarray:uint8"}, tmp_path) as writer:
        writer.write({**SAMPLE, "mask": [1] * 7})
    with pytest.raises(DamagedError, match="mask has 7 entries for 8 tokens"):
        PackRows(tmp_path, 8)[0]


def test_plans_say_what_long_text_there_is_and_how_often_it_is_read(tmp_path):
    for name, lengths in {"long": [600, 700, 20], "short": [10] * 50}.items():
        lines = [json.dumps({"input_ids": [5] * length}) + "\n" for length in lengths]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    long, short = (str(tmp_path / f"{name}.jsonl") for name in ("long", "short"))
    plans = plan_mix([parse_stream(f"{long}@0.6"), parse_stream(f"{short}@0.4")], [256, 650], 6601)
    assert [plan.longer for plan in plans] == [{256: 1300, 650: 700}, {256: 0, 650: 0}]
    assert [plan.reads for plan in plans] == [3961, 2640] and plans[0].epochs == pytest.approx(3961 / 1320)
    assert plans[0].warning == "" and "gone through 5.3 times" in plans[1].warning
    once, twice = plan_mix([parse_stream(long), parse_stream(f"{short}#2")], [256])
    assert (once.reads, twice.reads) == (1320, 1000)
    with pytest.raises(UserError, match=r"add up to 0\.9, not to 1"):
        plan_mix([parse_stream(f"{long}@0.6"), parse_stream(f"{short}@0.3")], [256], 100)
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(UserError, match="is empty"):
        plan_mix([parse_stream(str(tmp_path / "none.jsonl"))], [256])
    with pytest.raises(UserError, match="Nothing would be read"):
        plan_mix([parse_stream(f"{short}#0.0001")], [256])


def test_plans_count_the_documents_within_packed_sequences(tmp_path):
    with MDSWriter(COLUMNS, tmp_path / "packs") as writer:
        for _ in range(3):
            writer.write(SAMPLE)
    (plan,) = plan_mix([parse_stream(str(tmp_path / "packs"))], [5, 8])
    assert (plan.documents, plan.tokens, plan.longer) == (6, 24, {5: 15, 8: 0})


@pytest.mark.parametrize("ids", [np.arange(8.0), np.arange(-1, 7)])
def test_what_is_no_token_id_is_named(tmp_path, ids):
    with MDSWriter({**COLUMNS, "input_ids": f"ndarray:{ids.dtype}"}, tmp_path) as writer:
        writer.write(SAMPLE | {"input_ids": ids})
    with pytest.raises(DamagedError, match="input_ids are no token ids"):
        PackRows(tmp_path, 8)[0]


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=8), st.integers(0, 10_000))
def test_largest_remainders_add_up_and_are_within_one(shares, total):
    found = largest_remainder(shares, total)
    assert sum(found) == total
    assert all(abs(each - share * total / sum(shares)) < 1 for each, share in zip(found, shares, strict=True))


def test_the_command_packs_and_peeks(corpus, tmp_path, lmlab):
    found = lmlab(
        "data", "pack", corpus.directory, "--pack-length", "64", "--min-chunk-length", "16", "--out", tmp_path
    )
    assert found.code == 0 and "dropped: ends of documents shorter than min_chunk_length" in found.out
    shown = lmlab("data", "peek", tmp_path, "--samples", "1")
    first = next(peek(str(tmp_path), 1))
    assert shown.code == 0 and shown.out.splitlines()[0].startswith(f"0.0 {tmp_path.name} 0-{first.stop}")
    assert len(first.begin) > 10 and "alpha" in " ".join(each.begin for each in peek(str(tmp_path), 3))
    planned = lmlab("data", "mix-plan", tmp_path, "--length", "64")
    assert planned.code == 0 and "1.00" in planned.out
    refused = lmlab("data", "pack", corpus.directory, "--pack-length", "64", "--lengths", "8", "--out", tmp_path / "x")
    assert refused.code == 2 and "lengths belongs to the mode split" in refused.err


def test_the_public_library_reads_what_we_write(tmp_path):
    streaming = pytest.importorskip("streaming", reason="mosaicml-streaming, which needs old numpy, is not installed")
    documents = list(_documents(ORACLE))
    write_packs_of = [replace(each, domain="books") for each in documents]
    with MDSWriter(COLUMNS, tmp_path / "ours") as writer:
        for packed in pack(write_packs_of, PackConfig(pack_length=8)):
            writer.write({"domain": "books", "input_ids": packed.tokens, "indices": packed.indices, "length": 8})
    theirs = streaming.StreamingDataset(local=str(tmp_path / "ours"), batch_size=1, shuffle=False)
    assert [row["indices"].tolist() for row in theirs] == _indices(PackConfig(pack_length=8))[0]
    folder, entry = read_mds_index(str(tmp_path / "ours"))[0]
    assert MDSShard(entry, folder)[0]["length"] == theirs[0]["length"]


@pytest.mark.parametrize("compression", [None, "zstd", "zstd:7"])
def test_we_read_what_the_public_library_writes(tmp_path, compression):
    streaming = pytest.importorskip("streaming", reason="mosaicml-streaming, which needs old numpy, is not installed")
    arrays = {name: np.asarray(SAMPLE[name], dtype=np.uint32) for name in ("input_ids", "indices")}
    samples = [{"domain": f"d{number}", "length": np.uint64(number), **arrays} for number in range(40)]
    with streaming.MDSWriter(
        out=str(tmp_path), columns=COLUMNS, compression=compression, hashes=["sha1", "xxh64"], size_limit=2048
    ) as writer:
        for each in samples:
            writer.write(each)
    shards = [MDSShard(entry, folder) for folder, entry in read_mds_index(str(tmp_path))]
    assert len(shards) > 1
    found = [shard[number] for shard in shards for number in range(len(shard))]
    assert [row["domain"] for row in found] == [row["domain"] for row in samples]
    assert [int(row["length"]) for row in found] == list(range(40))
    for row in found:
        assert all(np.array_equal(row[name], array) for name, array in arrays.items())
