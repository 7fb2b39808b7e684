"""Soft prompts against embeddings laid together by hand, one row at a time."""

from __future__ import annotations

import pytest
import torch
from random_models import random_model
from safetensors.torch import save

from lmlab.errors import LmlabError, UserError
from lmlab.models import (
    GenerationConfig,
    KVCache,
    ModelConfig,
    PromptTuned,
    SoftPrompt,
    Transformer,
    from_pretrained,
    generate,
    load_soft_prompt,
    save_pretrained,
    save_soft_prompt,
    stream,
)
from lmlab.models.formats.tensor_file import read_tensors

KINDS = ["llama", "gpt2", "opt", "olmoe", "no_family"]
LENGTHS = [17, 4, 9]


def close(actual, expected, tolerance=1e-4):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def vectors(*shape, seed=7):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.5


def by_hand(model, prompt_PD, ids_T, positions):
    """Hidden states [T, D] of one unpadded text after embeddings that are laid together by hand."""
    embeds = torch.cat((prompt_PD, model.embedding(ids_T)))[None]
    explicit = {}
    if not positions:
        explicit["position_ids_BT"] = torch.cat((torch.full((len(prompt_PD),), -1), torch.arange(len(ids_T))))[None]
    return model(inputs_embeds_BTD=embeds, logits="none", **explicit).hidden_BTD[0, len(prompt_PD) :]


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_prompt_gives_what_embeddings_laid_together_by_hand_give(kind, positions, ids):
    model = random_model(kind)
    for prompts in (vectors(1, 5, 32), vectors(3, 5, 32)):
        output = model(ids, soft_prompt=SoftPrompt(prompts, positions), labels_BT=ids, logits="all")
        expected = torch.stack([by_hand(model, prompts[row % len(prompts)], ids[row], positions) for row in range(3)])
        close(output.hidden_BTD, expected)
        logits = expected @ model.head_weight_VD.T
        close(output.logits_BTV, logits)
        close(output.loss.sum, torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="sum"))


def test_the_two_ways_of_counting_positions_differ_and_so_do_prompts(ids):
    model, prompt = random_model("llama"), vectors(1, 5, 32)
    with_positions, without = (model(ids, soft_prompt=SoftPrompt(prompt, each)).hidden_BTD for each in (True, False))
    assert not torch.allclose(with_positions, without, atol=1e-2)
    assert not torch.allclose(without, model(ids).hidden_BTD, atol=1e-2)
    assert torch.equal(model(ids, soft_prompt=SoftPrompt(prompt[:, :0])).hidden_BTD, model(ids).hidden_BTD)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "no_family"])
@torch.no_grad()
def test_padded_rows_with_prompts_of_their_own_lengths_equal_the_rows_alone(kind, positions, side, ids):
    model = random_model(kind)
    prompts = [vectors(length, 32, seed=length) for length in (2, 6, 4)]
    lengths, index = torch.tensor(LENGTHS)[:, None], torch.arange(17)
    mask = index >= 17 - lengths if side == "left" else index < lengths
    hidden = model(ids, attention_mask_BT=mask, soft_prompt=SoftPrompt.of(prompts, positions=positions)).hidden_BTD
    for row in range(3):
        close(hidden[row][mask[row]], by_hand(model, prompts[row], ids[row][mask[row]], positions))


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_each_document_of_a_packed_row_stands_behind_the_prompt(kind, positions, ids):
    model, prompts = random_model(kind), vectors(3, 5, 32)
    lengths = torch.tensor([[5, 8, 4], [17, 0, 0], [1, 3, 10]])  # the last row ends with padding
    numbers = torch.tensor([4, 5, 6])
    documents = torch.full((3, 17), -1)
    for row, each in enumerate(lengths):
        packed = torch.repeat_interleave(numbers, each)
        documents[row, : len(packed)] = packed
    hidden = model(ids, document_ids_BT=documents, soft_prompt=SoftPrompt(prompts, positions)).hidden_BTD
    for row in range(3):
        for number in numbers:
            own = documents[row] == number
            if own.any():
                close(hidden[row][own], by_hand(model, prompts[row], ids[row][own], positions))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_cache_takes_the_prompt_in_and_goes_on(kind, positions, padded, ids):
    model, prompt = random_model(kind), SoftPrompt.of([vectors(n, 32, seed=n) for n in (5, 3, 4)], positions=positions)
    mask = torch.arange(17) >= 17 - torch.tensor([17, 12, 14])[:, None] if padded else torch.ones(3, 17).bool()
    expected = model(ids, attention_mask_BT=mask, soft_prompt=prompt).hidden_BTD
    cache = KVCache(model.config, 3, 40)
    first = model(ids[:, :6], attention_mask_BT=mask[:, :6], soft_prompt=prompt, cache=cache).hidden_BTD
    rest = [model(part, cache=cache).hidden_BTD for part in ids[:, 6:].split([1, 4, 1, 5], 1)]
    close(torch.cat((first, *rest), 1)[mask], expected[mask])


@torch.no_grad()
def test_a_cache_with_a_prompt_can_be_cut_chosen_from_laid_side_by_side_and_shared(ids):
    model, prompt = random_model("gpt2"), SoftPrompt(vectors(3, 5, 32), positions=False)
    expected = model(ids, soft_prompt=prompt).hidden_BTD[:, 8:]

    def prefilled():
        cache = KVCache(model.config, 3, 30)
        model(ids[:, :8], soft_prompt=prompt, cache=cache)
        return cache

    cut = prefilled()
    model(ids[:, 3:5], cache=cut)
    cut.crop(cut.length - 2)
    close(model(ids[:, 8:], cache=cut).hidden_BTD, expected)
    chosen = prefilled()
    chosen.select([2, 0])
    close(model(ids[[2, 0], 8:], cache=chosen).hidden_BTD, expected[[2, 0]])
    plain = KVCache(model.config, 1, 10)
    model(ids[:1, :8], cache=plain)
    joined = KVCache.side_by_side([(prefilled(), [1]), (plain, [0])], 20)
    both = model(ids[[1, 0], 8:], cache=joined).hidden_BTD
    close(both, torch.stack((expected[1], model(ids).hidden_BTD[0, 8:])))
    forked = prefilled().fork(1, 20)
    close(model(ids[:, 8:], cache=forked).hidden_BTD, expected)
    copied = prefilled().copy_of(1, 0, 13, room=10)
    close(model(ids[1:2, 8:], cache=copied).hidden_BTD, expected[1:2])


@pytest.mark.parametrize("positions", [True, False])
def test_generation_after_a_prompt_equals_choosing_the_likeliest_token_without_a_cache(positions):
    model = random_model("gpt2")
    prompts, soft = [[3, 4, 5, 6], [7]], SoftPrompt(vectors(2, 5, 32), positions)
    config = GenerationConfig(max_new_tokens=6, temperature=0)
    found = generate(model, prompts, config, soft_prompt=soft)
    for row, prompt in enumerate(prompts):
        ids = list(prompt)
        own = SoftPrompt(soft.vectors_BPD[row : row + 1], positions)
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids]), soft_prompt=own, logits="last").logits_BTV.argmax()))
        assert found[row][0].ids == ids[len(prompt) :]
        streamed = "".join(stream(model, prompt, config, lambda ids: "".join(map(chr, ids)), soft_prompt=own))
        assert [ord(each) for each in streamed] == found[row][0].ids
    assert found[0][0].ids != generate(model, prompts, config)[0][0].ids
    full = GenerationConfig(max_new_tokens=44, temperature=0)
    if positions:
        with pytest.raises(UserError, match="4 tokens behind a soft prompt of 5 vectors; with 44 new ones"):
            generate(model, prompts, full, soft_prompt=soft)
    else:
        assert len(generate(model, prompts, full, soft_prompt=soft)[0][0].ids) == 44


def test_gradients_reach_the_prompt_and_equal_differences(ids):
    model = random_model("llama").double()
    prompt = vectors(1, 3, 32).double().requires_grad_()

    def loss(prompt):
        return model(ids, soft_prompt=SoftPrompt(prompt), labels_BT=ids).loss.sum

    loss(prompt).backward()
    direction, step = vectors(1, 3, 32, seed=9).double(), 1e-5
    with torch.no_grad():
        slope = (loss(prompt + step * direction) - loss(prompt - step * direction)) / (2 * step)
    close((prompt.grad * direction).sum(), slope)


def test_a_prompt_that_does_not_fit_is_refused(ids):
    model = random_model("llama")
    for shape in ((2, 5, 32), (1, 5, 31), (5, 32)):
        with pytest.raises(ValueError, match="a soft prompt for 3 rows of width 32 is"):
            model(ids, soft_prompt=SoftPrompt(vectors(*shape)))
    cache = KVCache(model.config, 3, 40)
    model(ids, cache=cache)
    with pytest.raises(ValueError, match="to an empty cache"):
        model(ids, cache=cache, soft_prompt=SoftPrompt(vectors(1, 5, 32)))


def test_a_text_that_leaves_the_table_of_positions_behind_a_prompt_is_refused(ids):
    model = random_model("gpt2")
    long = ids.repeat(1, 9)[:, : model.config.max_seq_len - 4]
    with pytest.raises(ValueError, match=f"do not fit the model's table of {model.config.max_seq_len} positions"):
        model(long, soft_prompt=SoftPrompt(vectors(1, 5, 32)))
    model(long, soft_prompt=SoftPrompt(vectors(1, 4, 32)))


def test_a_prompt_is_saved_with_the_model_that_it_belongs_to(tmp_path):
    model, path = random_model("llama"), tmp_path / "prompt.safetensors"
    prompt = SoftPrompt.of([vectors(2, 32), vectors(4, 32)], positions=False)
    save_soft_prompt(prompt, path, model)
    save_pretrained(model, tmp_path / "model")
    in_bf16 = from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    for each in (model, in_bf16):
        loaded = load_soft_prompt(str(path), each)
        assert torch.equal(loaded.vectors_BPD, prompt.vectors_BPD) and torch.equal(loaded.valid_BP, prompt.valid_BP)
        assert loaded.positions is False
    with pytest.raises(UserError, match="was made for another model"):
        load_soft_prompt(path, random_model("llama", seed=2))
    with pytest.raises(UserError, match="holds no soft prompt"):
        load_soft_prompt(tmp_path / "model" / "model.safetensors", model)
    with pytest.raises(UserError, match="There is no soft prompt"):
        load_soft_prompt(tmp_path / "none", model)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(LmlabError, match="is damaged"):
        load_soft_prompt(path, model)


@pytest.mark.parametrize(
    ("tensors", "about"),
    [
        ({"vectors": torch.ones(4, 32)}, {}),
        ({"vectors": torch.ones(())}, {}),
        ({"vectors": torch.ones(0, 4, 32)}, {}),
        ({"vectors": torch.ones(1, 4, 32, dtype=torch.int32)}, {}),
        ({"valid": torch.ones(1, 2, dtype=torch.bool)}, {}),
        ({"valid": torch.ones(3, 4, dtype=torch.bool)}, {}),
        ({"valid": torch.ones(1, 4)}, {}),
        ({}, {"positions": "maybe"}),
        *(({}, {"budget": budget}) for budget in ("0", "-1", "x", "9" * 5000)),
    ],
)
def test_parts_that_do_not_fit_each_other_are_told_before_they_are_read(tmp_path, tensors, about):
    model, path = random_model("llama"), tmp_path / "prompt.safetensors"
    save_soft_prompt(SoftPrompt(vectors(1, 4, 32)), path, model)
    held, told = read_tensors(path, "")
    path.write_bytes(save(held | tensors, told | about))
    with pytest.raises(LmlabError, match="is damaged: its parts do not fit each other"):
        load_soft_prompt(path, model)
    path.write_bytes(save(held, {"format": told["format"]}))
    with pytest.raises(UserError, match="was made for another model"):
        load_soft_prompt(path, model)


def test_a_tuned_prompt_starts_as_tokens_and_alone_is_trained(ids):
    model = random_model("llama")
    tuned = PromptTuned(model, 5, init_ids=[4, 9]).train()
    as_tokens = torch.cat((torch.tensor([[4, 9, 4, 9, 4]]).expand(3, -1), ids), 1)
    close(tuned(ids).hidden_BTD, model(as_tokens).hidden_BTD[:, 5:])
    assert [name for name, each in tuned.named_parameters() if each.requires_grad] == ["prompt_PD"]
    assert not model.training


_WINDOWS = {"attention": ("sliding", "full"), "sliding_window": 6}


@pytest.mark.parametrize(
    ("features", "prompt"),
    [
        ({}, {}),
        ({"positions": "learned"}, {"positions": False}),
        ({}, {"budget": 9}),
        (_WINDOWS, {}),
        ({"positions": "learned", **_WINDOWS}, {"positions": False}),
    ],
)
def test_a_conversation_behind_vectors_reads_only_what_is_new(features, prompt):
    from lmlab.commands.chat import Conversation
    from lmlab.data import ChatConfig, Tokenizer, chat_tokenizer

    tokenizer = chat_tokenizer(
        Tokenizer.train(["Some words, and a few more of them."] * 4, 300), ChatConfig(template="tulu")
    )
    shape = {"num_layers": 2, "d_model": 32, "num_heads": 2, "max_seq_len": 256, "init_std": 0.3}
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, **shape, **features)).initialize(1).double().eval()
    drawn = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = SoftPrompt(drawn, **prompt)
    config = GenerationConfig(max_new_tokens=4, temperature=0)
    read = []
    hook = model.embedding.register_forward_hook(lambda module, given, out: read.append(given[0].numel()))
    conversation = Conversation(model, tokenizer, config, before=before)
    for text in ("Some words", "And more", "of them"):
        read.clear()
        answer, spent = "".join(conversation.reply(text)), sum(read)
        ids = tokenizer.encode_chat(conversation.messages[:-1])
        ((whole,),) = generate(model, [ids], config, decode=tokenizer.decode, soft_prompt=before)
        assert answer == whole.text
    assert spent < len(ids) / 2
    conversation.reset()
    assert "".join(conversation.reply("Some words")) == conversation.messages[-1]["content"]
    hook.remove()


def test_windows_count_vectors_without_a_position_in_padded_batches_as_in_others():
    shape = {"num_layers": 2, "d_model": 32, "num_heads": 2, "max_seq_len": 64, "init_std": 0.3, "vocab_size": 40}
    model = Transformer(ModelConfig(positions="learned", **_WINDOWS, **shape)).initialize(1).double().eval()
    before = SoftPrompt(torch.randn(1, 5, 32, dtype=torch.float64), positions=False)
    prompts, config = [[3], [1, 2, 3, 4], list(range(9))], GenerationConfig(max_new_tokens=8, temperature=0)
    together = generate(model, prompts, config, soft_prompt=before)
    for ids, (made,) in zip(prompts, together, strict=True):
        expected = list(ids)
        for _ in range(8):
            logits = model(torch.tensor([expected]), soft_prompt=before).logits_BTV
            expected.append(int(logits[0, -1].argmax()))
        assert made.ids == expected[len(ids) :]
