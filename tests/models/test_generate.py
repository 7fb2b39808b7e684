from __future__ import annotations

from collections import Counter

import pytest
import torch
import transformers

from lmlab.errors import UserError
from lmlab.models import generate, save_pretrained
from lmlab.models.generate import sample

PROMPTS = [[5, 9, 2, 40, 17, 3], [8], [1, 1, 60, 22], [33, 7]]


@pytest.fixture
def model(make_model):
    return make_model("llama")


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_greedy_equals_transformers_token_for_token(kind, make_model, tmp_path):
    model = make_model(kind)
    save_pretrained(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    longest = max(map(len, PROMPTS))
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    expected = theirs.generate(padded, attention_mask=mask, max_new_tokens=20, min_new_tokens=20, do_sample=False, pad_token_id=0)
    assert generate(model, PROMPTS, 20, temperature=0) == expected[:, longest:].tolist()


def test_a_batch_of_unequal_prompts_equals_each_prompt_alone(model):
    assert generate(model, PROMPTS, 12, temperature=0) == [generate(model, [prompt], 12, temperature=0)[0] for prompt in PROMPTS]


def test_sampling_is_reproducible_from_its_seed(model):
    first = generate(model, PROMPTS, 20, seed=4)
    torch.manual_seed(99)
    assert generate(model, PROMPTS, 20, seed=4) == first
    assert generate(model, PROMPTS, 20, seed=5) != first


def test_generating_leaves_the_global_random_state_and_the_mode_alone(model):
    model.train()
    state = torch.get_rng_state()
    generate(model, PROMPTS, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_top_k_of_one_is_greedy(model):
    assert generate(model, PROMPTS, 20, top_k=1, temperature=2.0) == generate(model, PROMPTS, 20, temperature=0)


def test_a_tiny_top_p_is_greedy(model):
    assert generate(model, PROMPTS, 20, top_p=1e-6, temperature=2.0) == generate(model, PROMPTS, 20, temperature=0)


def test_generation_stops_at_eos_which_is_not_returned(model):
    free = generate(model, PROMPTS, 20, temperature=0)
    eos = free[0][7]
    stopped = generate(model, PROMPTS, 20, temperature=0, eos_id=eos)
    assert stopped == [row[: row.index(eos)] if eos in row else row for row in free]
    assert len(stopped[0]) <= 7


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"top_k": None, "top_p": None}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_k": 2, "top_p": None}, [0.625, 0.375, 0, 0]),
        ({"top_k": 9, "top_p": None}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_k": None, "top_p": 0.7}, [0.625, 0.375, 0, 0]),
        ({"top_k": None, "top_p": 0.9}, [10 / 19, 6 / 19, 3 / 19, 0]),
    ],
)
def test_draws_follow_the_filtered_distribution(options, expected):
    draws = 20_000
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(draws, -1)
    counts = Counter(sample(logits, 1.0, options["top_k"], options["top_p"], torch.Generator().manual_seed(0)).tolist())
    assert [counts[token] / draws for token in range(4)] == pytest.approx(expected, abs=0.015)
    assert all(counts[token] == 0 for token in range(4) if expected[token] == 0)


def test_temperature_sharpens_the_distribution():
    logits = torch.tensor([0.8, 0.2]).log().expand(20_000, -1)
    share = (sample(logits, 0.5, None, None, torch.Generator().manual_seed(0)) == 0).float().mean().item()
    assert share == pytest.approx(0.8**2 / (0.8**2 + 0.2**2), abs=0.015)


def test_a_prompt_that_fills_the_context_exactly_is_accepted(model):
    assert len(generate(model, [[1] * 40], 8, temperature=0)[0]) == 8


def test_a_prompt_that_is_too_long_is_a_user_error(model):
    with pytest.raises(UserError, match="longest prompt has 40 tokens; with 9 new ones it exceeds the model's 48"):
        generate(model, [[1], [1] * 40], 9)


@pytest.mark.parametrize("prompts", [[], [[]], [[1], []]], ids=str)
def test_an_empty_prompt_is_a_user_error(model, prompts):
    with pytest.raises(UserError, match="at least one token"):
        generate(model, prompts, 3)


def test_no_new_tokens_can_be_asked_for(model):
    assert generate(model, PROMPTS, 0) == [[], [], [], []]
