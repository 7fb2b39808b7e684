"""Memories against the text itself: what stands for all of a text gives what the text gives."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from random_models import random_model
from safetensors.torch import save

from lmlab.errors import LmlabError, UserError
from lmlab.models import (
    GenerationConfig,
    KVCache,
    Memory,
    Piece,
    SoftPrompt,
    find_context,
    generate,
    known_fingerprint,
    load_memory,
    read_rows,
    save_memory,
    save_soft_prompt,
    stored_tensors,
    weights_fingerprint,
)
from lmlab.models.formats.tensor_file import read_tensors
from lmlab.models.internals.taps import Taps
from lmlab.models.memory.rows import KVRows

KINDS = ["llama", "qwen3", "olmo2", "gpt2", "opt", "olmoe", "no_family"]


def close(actual, expected, tolerance=1e-4):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def ids_of(rows, length, seed=0):
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


def some_of(rows: KVRows, slots: int, seed: int = 3) -> KVRows:
    """Slots chosen at random for each layer and head, in order."""
    noise = torch.rand(rows.positions_LBKM.shape, generator=torch.Generator().manual_seed(seed))
    return rows.gather(noise.topk(slots, dim=-1).indices.sort(-1).values)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_all_rows_of_a_context_give_what_the_context_gives(kind):
    model, context, text = random_model(kind), ids_of(3, 14), ids_of(3, 9, seed=1)
    expected = model(torch.cat((context, text), 1)).logits_BTV[:, 14:]
    memory = Memory(read_rows(model, context))
    close(model(text, memory=memory).logits_BTV, expected)
    assert memory.next_position.tolist() == [14, 14, 14]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_kept_slots_of_each_head_give_what_a_pattern_without_the_others_gives(kind):
    """The whole text is read again with every other slot of the context hidden from the later tokens, head by head."""
    model, context, text = random_model(kind), ids_of(2, 12), ids_of(2, 7, seed=1)
    rows = some_of(read_rows(model, context), 5)
    # hide what was not kept: queries of the text alone, so that the context itself is read as before
    group = model.config.num_heads // model.config.num_kv_heads

    def hide(layer):
        kept = torch.zeros(2, model.config.num_kv_heads, 19, dtype=torch.bool)
        kept[:, :, 12:] = True
        kept.scatter_(2, rows.positions_LBKM[layer], True)
        hidden = ~kept.repeat_interleave(group, 1)[:, :, None]

        def listen(pattern):
            cut = pattern.masked_fill(hidden, 0)
            cut = cut / cut.sum(-1, keepdim=True)
            return torch.cat((pattern[:, :, :12], cut[:, :, 12:]), 2)

        return listen

    taps = Taps({f"blocks.{layer}.attention.pattern": hide(layer) for layer in range(2)})
    expected = model(torch.cat((context, text), 1), taps=taps).logits_BTV[:, 12:]
    close(model(text, memory=Memory(rows)).logits_BTV, expected)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("kind", ["llama", "opt", "olmoe"])
@torch.no_grad()
def test_generation_from_a_memory_is_the_loop_without_a_cache(kind, ragged):
    model, context = random_model(kind), ids_of(1, 12)
    rows = some_of(read_rows(model, context), 6)
    if ragged:
        valid = torch.rand(rows.positions_LBKM.shape, generator=torch.Generator().manual_seed(5)) < 0.6
        valid[..., 0] = True
        rows = rows.gather(torch.arange(6).expand(rows.positions_LBKM.shape), valid)
    memory, prompts = Memory(rows), [[3, 4, 5, 6], [7], [8, 9]]
    found = generate(model, prompts, GenerationConfig(max_new_tokens=5, temperature=0), memory=memory)
    for prompt, (completion,) in zip(prompts, found, strict=True):
        ids = list(prompt)
        for _ in range(5):
            ids.append(int(model(torch.tensor([ids]), memory=memory).logits_BTV[0, -1].argmax()))
        assert completion.ids == ids[len(prompt) :]


@torch.no_grad()
def test_a_batch_of_unlike_memories_is_each_alone_and_samples_keep_theirs():
    model = random_model("llama")
    memories = [Memory(read_rows(model, ids_of(1, length, seed=length))) for length in (13, 4, 9)]
    prompts = [[3, 4, 5], [6], [7, 8]]
    config = GenerationConfig(max_new_tokens=4, num_samples=2, temperature=1.0)
    together = generate(model, prompts, config, memory=Memory.batch(memories))
    for prompt, memory, completions in zip(prompts, memories, together, strict=True):
        (alone,) = generate(model, [prompt], config, memory=memory)
        assert [each.ids for each in completions] == [each.ids for each in alone]
        for one, other in zip(completions, alone, strict=True):
            close(torch.tensor(one.log_probs), torch.tensor(other.log_probs))


@torch.no_grad()
def test_padding_on_either_side_changes_nothing():
    model, context, text = random_model("llama"), ids_of(1, 8), ids_of(1, 5, seed=1)
    memory = Memory(some_of(read_rows(model, context), 3))
    expected = model(text, memory=memory).logits_BTV
    for left, right in ((3, 0), (0, 2), (2, 1)):
        padded = torch.nn.functional.pad(text, (left, right))
        valid = torch.nn.functional.pad(torch.ones_like(text), (left, right))
        found = model(padded, memory=memory, attention_mask_BT=valid).logits_BTV[:, left : left + 5]
        close(found, expected)
    # the context's own padding leaves empty slots
    context_padded = torch.nn.functional.pad(context, (4, 0))
    valid = torch.nn.functional.pad(torch.ones_like(context), (4, 0))
    rows = read_rows(model, context_padded, attention_mask_BT=valid)
    close(model(text, memory=Memory(rows)).logits_BTV, model(torch.cat((context, text), 1)).logits_BTV[:, 8:])


@torch.no_grad()
def test_packed_documents_each_stand_after_the_memory():
    model, context = random_model("llama"), ids_of(1, 8)
    memory, first, second = Memory(read_rows(model, context)), ids_of(1, 5, seed=1), ids_of(1, 4, seed=2)
    documents = torch.tensor([[0] * 5 + [1] * 4])
    packed = model(torch.cat((first, second), 1), memory=memory, document_ids_BT=documents).logits_BTV
    close(packed[:, :5], model(first, memory=memory).logits_BTV)
    close(packed[:, 5:], model(second, memory=memory).logits_BTV)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "olmoe"])
def test_autocompressors_12_kernels_agree_on_the_same_memory(kind):
    """Vectors made by one attention kernel were read by another at a loss."""
    model, context, text = random_model(kind), ids_of(2, 16), ids_of(2, 6, seed=1)
    memories = {}
    for backend in ("sdpa", "blocked"):
        model.attention_backend = backend
        memories[backend] = Memory(read_rows(model, context))
    found = {}
    for made, memory in memories.items():
        for read in ("auto", "sdpa", "blocked", "pattern"):
            model.attention_backend = "auto" if read == "pattern" else read
            taps = Taps({"blocks.*.attention.pattern": lambda x: None}) if read == "pattern" else None
            found[made, read] = model(text, memory=memory, taps=taps).logits_BTV
    for each in found.values():
        close(each, found["sdpa", "sdpa"])


@torch.no_grad()
def test_a_window_counts_in_positions_of_the_text_not_in_slots():
    changes = {"attention": ("sliding", "full"), "sliding_window": 6}
    model, context, text = random_model("llama", **changes), ids_of(2, 12), ids_of(2, 7, seed=1)
    whole = model(torch.cat((context, text), 1)).logits_BTV[:, 12:]
    rows = read_rows(model, context)
    close(model(text, memory=Memory(rows)).logits_BTV, whole)
    # a slot that the window has passed may go from that layer
    valid = torch.ones(rows.positions_LBKM.shape, dtype=torch.bool)
    valid[0, :, :, :7] = False
    pruned = rows.gather(torch.arange(12).expand(rows.positions_LBKM.shape), valid)
    close(model(text, memory=Memory(pruned)).logits_BTV, whole)
    cache = KVCache(model.config, 2, 7)
    first = model(text[:, :3], memory=Memory(pruned), cache=cache).logits_BTV
    rest = [model(text[:, place : place + 1], cache=cache).logits_BTV for place in range(3, 7)]
    close(torch.cat((first, *rest), 1), whole)


@torch.no_grad()
def test_plain_chunks_vectors_and_rows_are_what_the_text_is():
    model, context, text = random_model("llama"), ids_of(2, 15), ids_of(2, 6, seed=1)
    expected = model(torch.cat((context, text), 1)).logits_BTV[:, 15:]
    vectors = Piece(model.embed(context[:, 5:9]))
    chunk = Piece(context[:, 9:])
    embeds = Memory(pieces=(Piece(model.embed(context)),))
    mixed = Memory(read_rows(model, context[:, :5]), (vectors, chunk))
    assert (embeds.kind, mixed.kind, Memory(mixed.rows).kind) == ("embeds", "mixed", "kv")
    for memory in (embeds, mixed, Memory(pieces=(Piece(context),))):
        close(model(text, memory=memory).logits_BTV, expected)
        assert memory.next_position.unique().tolist() == [15]
    close(model(text, memory=embeds).logits_BTV, model(text, soft_prompt=SoftPrompt(embeds.pieces[0].x)).logits_BTV)
    first, second = generate(model, text.tolist(), GenerationConfig(max_new_tokens=4, temperature=0), memory=mixed)
    whole = generate(model, torch.cat((context, text), 1).tolist(), GenerationConfig(max_new_tokens=4, temperature=0))
    assert [first[0].ids, second[0].ids] == [each[0].ids for each in whole]


@torch.no_grad()
def test_memories_follow_each_other_in_their_order():
    model, text = random_model("llama"), ids_of(1, 5, seed=9)
    contexts = [ids_of(1, length, seed=length) for length in (7, 4)]
    one, two = (Memory(read_rows(model, each), tokens_B=(each.shape[1],)) for each in contexts)
    joined = Memory.in_sequence([one, two], model)
    assert joined.next_position.tolist() == [11] and joined.tokens_B == (11,)
    # what a model sees whose second context stands at positions 7.. and does not see the first
    places = torch.arange(16)[None]
    visible = torch.ones(1, 16, 16, dtype=torch.bool).tril()
    visible[:, 7:11, :7] = False
    expected = model(torch.cat((*contexts, text), 1), position_ids_BT=places, visible_BTS=visible).logits_BTV[:, 11:]
    close(model(text, memory=joined).logits_BTV, expected)
    other = model(text, memory=Memory.in_sequence([two, one], model)).logits_BTV
    assert (other - expected).abs().max() > 1e-2
    learned = random_model("gpt2")
    rows = Memory(read_rows(learned, contexts[0]))
    with pytest.raises(UserError, match="learned table"):
        Memory.in_sequence([rows, rows], learned)
    with pytest.raises(UserError, match="cannot follow vectors"):
        Memory.in_sequence([Memory(pieces=(Piece(contexts[0]),)), one], model)


def test_gradients_reach_the_rows():
    model, text = random_model("llama"), ids_of(2, 6)
    with torch.no_grad():
        rows = read_rows(model, ids_of(1, 8))
    keys, values = (each.clone().requires_grad_() for each in (rows.keys_LBKMH, rows.values_LBKMH))
    memory = Memory(KVRows(keys, values, rows.positions_LBKM, rows.next_position_B))
    losses = []
    for recompute in (0, 1):
        model.recompute_blocks = recompute
        model(text[:, :-1], memory=memory, labels_BT=text[:, 1:]).loss.sum.backward()
        losses.append((keys.grad.clone(), values.grad.clone()))
        keys.grad = values.grad = None
    close(losses[0], losses[1])
    assert all(each.abs().sum((1, 2, 4)).min() > 0 for each in losses[0])  # every layer, every slot


@torch.no_grad()
def test_a_file_gives_the_memory_back_and_is_bound_to_its_weights(tmp_path):
    model, text = random_model("llama"), ids_of(1, 5)
    rows = read_rows(model, ids_of(1, 9))
    valid = torch.ones(rows.positions_LBKM.shape, dtype=torch.bool)
    valid[0, :, 0, 2:6] = False
    ragged = rows.gather(torch.arange(9).expand(rows.positions_LBKM.shape), valid)
    memory = Memory(ragged, (Piece(model.embed(ids_of(1, 3))),), True, (12,), ("s",), about={"compressor": "test"})
    save_memory(memory, tmp_path / "memory.safetensors", model)
    read = load_memory(tmp_path / "memory.safetensors", model)
    assert torch.equal(model(text, memory=read).logits_BTV, model(text, memory=memory).logits_BTV)
    assert (read.tokens_B, read.source_hash, read.about) == ((12,), ("s",), {"compressor": "test"})
    assert read.model_hash == weights_fingerprint(model, torch.bfloat16)
    held, whole = (sum(x.numel() for x in each.values()) for each in (stored_tensors(memory), memory.tensors))
    assert held == whole - 4 * 2 * 8  # empty slots are not written
    for other, said in (
        (random_model("llama", seed=2), "other weights"),
        (random_model("llama", num_layers=3), "2 layers; the model has 3"),
        (random_model("llama", num_kv_heads=4), "2 key-value heads; the model has 4"),
    ):
        with pytest.raises(UserError, match=said):
            load_memory(tmp_path / "memory.safetensors", other)
    with pytest.raises(UserError, match="other weights"):
        random_model("llama", seed=2)(text, memory=read)
    with pytest.raises(UserError, match="32 wide; the model is 64 wide"):
        random_model("llama", d_model=64)(text, memory=Memory(pieces=memory.pieces))


@torch.no_grad()
def test_a_conversation_goes_on_behind_keys_and_values():
    from lmlab.commands.chat import Conversation
    from lmlab.data import ChatConfig, Tokenizer, chat_tokenizer

    words = Tokenizer.train(["Some words, and a few more of them."] * 4, 300)
    tokenizer = chat_tokenizer(words, ChatConfig(template="tulu"))
    model = random_model("llama", vocab_size=tokenizer.vocab_size, max_seq_len=128)
    rows = read_rows(model, ids_of(1, 30))
    memory = Memory(
        rows.gather(torch.arange(0, 30, 3).expand(*rows.positions_LBKM.shape[:3], -1))
    )  # positions go on behind all 30
    config = GenerationConfig(max_new_tokens=4, temperature=0)
    conversation = Conversation(model, tokenizer, config, before=memory)
    for text in ("Some words", "And more"):
        answer = "".join(conversation.reply(text))
        ids = tokenizer.encode_chat(conversation.messages[:-1])
        assert answer == generate(model, [ids], config, decode=tokenizer.decode, memory=memory)[0][0].text
    with pytest.raises(UserError, match="exceeds the model's 98"):
        "".join(conversation.reply("more of them " * 40))


@torch.no_grad()
def test_files_of_others_are_found_and_need_trust(tmp_path, monkeypatch):
    model = random_model("llama")
    memories = {
        "kv": Memory(read_rows(model, ids_of(1, 4))),
        "vectors": Memory(pieces=(Piece(model.embed(ids_of(1, 4))),)),
        "chunk": Memory(pieces=(Piece(ids_of(1, 4)),)),
    }
    for name, memory in memories.items():
        save_memory(memory, tmp_path / name, model)
        found = find_context(tmp_path / name, model)
        assert isinstance(found, Memory if name == "kv" else SoftPrompt)
        given = {"memory": found} if name == "kv" else {"soft_prompt": found}
        close(model(ids_of(1, 3), **given).logits_BTV, model(ids_of(1, 3), memory=memory).logits_BTV)
    save_soft_prompt(SoftPrompt(model.embed(ids_of(1, 4))), tmp_path / "prompt", model)
    assert isinstance(find_context(tmp_path / "prompt", model), SoftPrompt)
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path / "another-user"))
    for name in (*memories, "prompt"):
        with pytest.raises(UserError, match="not written by you"):
            find_context(tmp_path / name, model)
        find_context(tmp_path / name, model, trust=True)


@torch.no_grad()
def test_damaged_and_foreign_files_are_refused(tmp_path):
    model, path = random_model("llama"), tmp_path / "m.safetensors"
    memory = Memory(read_rows(model, ids_of(1, 4)))
    with pytest.raises(UserError, match="There is no memory"):
        load_memory(path, model)
    nan = replace(memory.rows, values_LBKMH=memory.rows.values_LBKMH * float("nan"))
    with pytest.raises(UserError, match="no numbers"):
        save_memory(Memory(nan), path, model)
    save_memory(memory, path, model)
    _rewritten(path, {"values": lambda held: held["values"] * float("nan")})
    with pytest.raises(UserError, match="no numbers"):  # nor are they read, whoever wrote them
        load_memory(path, model)
    save_memory(memory, path, model)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(LmlabError, match="damaged"):
        load_memory(path, model)


def _rewritten(path, tensors=None, about=None):
    """A file with other parts, as somebody who knows the format could write it; None takes a part away."""
    held, told = read_tensors(path, "")
    held |= {name: change(held) for name, change in (tensors or {}).items()}
    told |= about or {}
    kept = {name: value for name, value in told.items() if value is not None}
    path.write_bytes(save({name: x.contiguous() for name, x in held.items() if x is not None}, kept))


@pytest.mark.parametrize(
    ("tensors", "about"),
    [
        ({}, {"tokens": "[1.5]"}),
        ({}, {"tokens": '["4"]'}),
        ({}, {"tokens": "[-4]"}),
        ({}, {"tokens": "[4, 4]"}),
        ({}, {"sources": "{}"}),
        ({}, {"about": "[]"}),
        ({}, {"about": '{"kernel": 1}'}),
        ({}, {"positions": "maybe"}),
        ({}, {"model": None}),
        ({"keys": lambda t: t["keys"].int(), "values": lambda t: t["values"].int()}, {}),
        ({"values": lambda t: t["values"].half()}, {}),
        ({"keys": lambda t: t["keys"][0]}, {}),
        ({"positions": lambda t: t["positions"].float()}, {}),
        ({"positions": lambda t: t["positions"] - 2}, {}),
        ({"positions": lambda t: t["positions"] + 1}, {}),  # the last stands where the text is to go on
        ({"next_position": lambda t: t["next_position"] - 9}, {}),
        ({"next_position": lambda t: t["next_position"].double()}, {}),
        ({name: lambda t, name=name: t[name][:, :0] for name in ("keys", "values", "positions")}, {}),
        ({"pieces.0.ids": lambda t: t["pieces.0.ids"].float()}, {}),
        ({"pieces.0.ids": lambda t: t["pieces.0.ids"].bool()}, {}),
        ({"pieces.0.ids": lambda t: t["pieces.0.ids"][0]}, {}),
        ({"pieces.0.ids": lambda t: t["pieces.0.ids"][:0]}, {}),
        ({"pieces.0.valid": lambda t: torch.ones(1, 2, dtype=torch.bool)}, {}),
        ({"pieces.0.valid": lambda t: torch.ones(1, 4)}, {}),
        ({"pieces.0.vectors": lambda t: torch.ones(1, 4, 32)}, {}),
        ({"pieces.1.vectors": lambda t: torch.ones(1, 2, 32, dtype=torch.int32)}, {}),
        ({"pieces.7.vectors": lambda t: torch.ones(1, 2, 32)}, {}),
    ],
)
@torch.no_grad()
def test_parts_that_do_not_fit_each_other_are_told_before_they_are_read(tmp_path, tensors, about):
    model, path = random_model("llama"), tmp_path / "m.safetensors"
    rows = read_rows(model, ids_of(1, 6))
    chosen = rows.gather(torch.arange(6).expand(rows.positions_LBKM.shape))
    save_memory(Memory(chosen, (Piece(ids_of(1, 4)),), tokens_B=(10,)), path, model)
    assert find_context(path, model).kind == "mixed"
    _rewritten(path, tensors, about)
    with pytest.raises(LmlabError, match="is damaged: its parts do not fit each other"):
        find_context(path, model, trust=True)


@torch.no_grad()
def test_what_stands_for_several_texts_or_is_no_file_is_refused_for_one(tmp_path):
    model = random_model("llama")
    save_memory(Memory(read_rows(model, ids_of(2, 4)), tokens_B=(4, 4), source_hash=("a", "b")), tmp_path / "m", model)
    save_soft_prompt(SoftPrompt(model.embed(ids_of(3, 4))), tmp_path / "s", model)
    for name, texts in (("m", 2), ("s", 3)):
        with pytest.raises(UserError, match=f"stands for {texts} texts"):
            find_context(tmp_path / name, model)
    os.mkfifo(tmp_path / "pipe")  # which would be waited for
    for place in (tmp_path / "pipe", tmp_path / ("x" * 5000), tmp_path / "a\0b"):
        with pytest.raises(UserError, match="There is no soft prompt at"):
            find_context(place, model)


@torch.no_grad()
def test_a_fingerprint_is_remembered_until_a_weight_changes():
    model = random_model("llama")
    before = known_fingerprint(model)
    assert before == known_fingerprint(model) == weights_fingerprint(model, torch.bfloat16)
    model.blocks[0].attention.key.weight.add_(1)
    assert known_fingerprint(model) == weights_fingerprint(model, torch.bfloat16) != before


@torch.no_grad()
def test_what_cannot_be_read_together_is_refused():
    model, text = random_model("llama"), ids_of(2, 4)
    memory = Memory(read_rows(model, ids_of(1, 5)))
    three = Memory(read_rows(model, ids_of(3, 5)))
    cache = KVCache(model.config, 2, 12)
    model(text, cache=cache)
    for said, named in (
        ("3 rows does not fit a batch of 2", {"memory": three}),
        ("to an empty cache", {"memory": memory, "cache": cache}),
        ("as a piece of the memory", {"memory": memory, "soft_prompt": SoftPrompt(torch.zeros(1, 2, 32))}),
        ("counted, not given", {"memory": memory, "position_ids_BT": torch.arange(4)[None]}),
    ):
        with pytest.raises(ValueError, match=said):
            model(text, **named)
    with pytest.raises(UserError, match="behind a memory of 5 positions"):
        generate(model, [[1] * 40], GenerationConfig(max_new_tokens=8), memory=memory)
