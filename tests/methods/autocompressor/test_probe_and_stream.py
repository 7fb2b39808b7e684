"""What memories lose by the kind of word, and text that never ends in bounded memory."""

from __future__ import annotations

import math

import pytest
import torch
from small_models import random_model

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.methods.autocompressor.comparing.probe import WORD_KINDS, probe, word_kinds
from lmlab.methods.autocompressor.kinds.base import create
from lmlab.methods.autocompressor.streaming import Stream
from lmlab.models import (
    GenerationConfig,
    Memory,
    StoreMeta,
    SummaryStore,
    generate,
    load_soft_prompt,
    read_rows,
    save_soft_prompt,
)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


TEXT = "The fox met Anna in 1984. Then Zoe saw the zyxwvut there.\nOnly 3.5 foxes live in Oslo now."


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([" the fox met in then saw there only foxes live now" * 50], 340)


def test_words_are_names_numbers_rare_or_other_by_all_their_tokens(tokenizer):
    ids = tokenizer.encode(TEXT, "as_text")
    kinds = word_kinds(ids, tokenizer)
    found = {kind: "" for kind in WORD_KINDS}
    for token, kind in zip(ids, kinds, strict=True):
        found[kind] += tokenizer.decode([token]).strip()
    assert (found["name"], found["number"], found["rare"]) == ("AnnaZoeOslo", "198435", "Thenzyxwvut")


@torch.no_grad()
def test_the_probe_is_the_loss_of_the_text_behind_its_memory(tokenizer):
    model = random_model(vocab_size=tokenizer.vocab_size, max_seq_len=512)
    ids = tokenizer.encode(TEXT, "as_text")
    lines = probe(model, create("full", model), tokenizer, [ids, ids[:40]], 1.0)
    assert sum(line.tokens for line in lines) == len(ids) - 1 + 39
    for line in lines:
        assert line.kept == line.whole
    total = sum(line.whole * line.tokens for line in lines)
    expected = 0.0
    for text in (ids, ids[:40]):
        row = torch.tensor([text])
        log_probs = model(row, memory=Memory(read_rows(model, row))).logits_BTV[0, :-1].log_softmax(-1)
        expected -= float(log_probs.gather(1, row[0, 1:, None]).sum())
    assert total == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["prune:norm", "truncate", "icae"])
@torch.no_grad()
def test_a_stream_stays_small_however_much_comes(kind):
    model = random_model(max_seq_len=4096)
    stream = Stream(create(kind, model, ratio=4, sinks=0), plain=10, chunk=20)
    assert stream.memory.ratio == math.inf
    whole = torch.randint(0, 61, (205,), generator=torch.Generator().manual_seed(0)).tolist()
    for start in range(0, 205, 7):
        stream.add(whole[start : start + 7])
    # 9 chunks of 20 became 5 positions each, 25 tokens are as they were
    assert stream.compressions == 9 and stream.memory.slots_B.tolist() == [9 * 5 + 25]
    assert stream.memory.tokens_B == (205,)
    assert stream.memory.next_position.tolist() == [205 if kind == "prune:norm" else 9 * 5 + 25]
    assert len(generate(model, [[3, 4]], GenerationConfig(max_new_tokens=3), memory=stream.memory)[0][0].ids) == 3


@torch.no_grad()
def test_a_stream_that_compresses_nothing_yet_is_the_text():
    model = random_model()
    stream = Stream(create("prune:snap", model), plain=12, chunk=20)
    stream.add(range(12))
    text = torch.tensor([[5, 6]])
    expected = model(torch.tensor([[*range(12), 5, 6]])).logits_BTV[:, 12:]
    torch.testing.assert_close(model(text, memory=stream.memory).logits_BTV, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="beyond the model's vocabulary"):
        stream.add([61, *range(19)])
    assert stream.memory.tokens_B == (32,)  # what cannot be compressed is not lost
    with pytest.raises(UserError, match="chunk 0"):
        Stream(create("prune:snap", model), plain=12, chunk=0)


@pytest.mark.parametrize("name", ["gpt2", "llama", "no positions"])
@torch.no_grad()
def test_plain_tokens_behind_summaries_are_read_as_the_method_reads_them(name, tmp_path):
    """With learned positions vectors have none, and the newest tokens lost theirs too."""
    model, generator = random_model(name), torch.Generator().manual_seed(0)
    kind = create("summary", model, ratio=4, segment=8).eval()
    compressor = kind._compressor[0]
    ids, text = (torch.randint(0, 61, (1, length), generator=generator) for length in (28, 5))
    stream = Stream(kind, plain=8, chunk=8)
    stream.add(ids[0].tolist())
    chunks = [compressor.compress(ids[:, start : start + 8]).vectors_BPD for start in (0, 8)]

    def expected(following):
        row = torch.cat((ids[:, 16:], following), 1)
        return compressor(row, soft_prompt=torch.cat(chunks, 1)).logits_BTV[:, 12:]

    memory = stream.memory
    close(model(text, memory=memory).logits_BTV, expected(text))
    padded = model(text, attention_mask_BT=torch.tensor([[0, 0, 1, 1, 1]]), memory=memory).logits_BTV[:, 2:]
    close(padded, expected(text[:, 2:]))
    written = generate(model, [text[0].tolist(), [3]], GenerationConfig(max_new_tokens=3, temperature=0), memory=memory)
    for prompt, (one,) in zip((text, torch.tensor([[3]])), written, strict=True):
        for token in one.ids:
            assert int(expected(prompt)[0, -1].argmax()) == token
            prompt = torch.cat((prompt, torch.tensor([[token]])), 1)
    prompt = memory.soft_prompt(model)
    save_soft_prompt(prompt, tmp_path / "p.safetensors", model)
    read = load_soft_prompt(tmp_path / "p.safetensors", model)
    close(model(text, soft_prompt=read).logits_BTV, expected(text))
    assert int(memory.next_position) == read.positions_taken == (16 if name == "llama" else 12)
    if name == "gpt2":
        with pytest.raises(UserError, match="plain tokens beside its vectors"):
            compressor(text, soft_prompt=read)
        meta = StoreMeta(model="m", compressor="c", summary_length=2, width=32)
        store = SummaryStore.create(tmp_path / "store", meta)
        with pytest.raises(UserError, match="a store does not keep"):
            store.add("chat", read)
