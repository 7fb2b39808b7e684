from __future__ import annotations

from collections import Counter

import pytest
import torch
import transformers

from lmlab.errors import UserError
from lmlab.models import GenerationConfig, KVCache, generate, save_pretrained, stream
from lmlab.models.generation.sampling import draw, keep_likely

PROMPTS = [[5, 9, 2, 40, 17, 3], [8], [1, 1, 60, 22], [33, 7]]


def decode(ids):
    """Every token is two letters."""
    return "".join(chr(97 + token // 8) + chr(97 + token % 8) for token in ids)


def ids_of(model, prompts=PROMPTS, **options):
    return [
        [each.ids for each in found] for found in generate(model, prompts, GenerationConfig(**options), decode=decode)
    ]


def first_ids(model, prompts=PROMPTS, **options):
    return [found[0] for found in ids_of(model, prompts, **options)]


@pytest.fixture
def model(make_model):
    return make_model("llama")


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "olmo2", "olmoe", "gpt2", "opt"])
def test_greedy_equals_transformers_token_for_token(kind, make_model, tmp_path):
    model = make_model(kind)
    save_pretrained(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    longest = max(map(len, PROMPTS))
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    expected = theirs.generate(
        padded, attention_mask=mask, max_new_tokens=20, min_new_tokens=20, do_sample=False, pad_token_id=0
    )
    assert first_ids(model, max_new_tokens=20, temperature=0) == expected[:, longest:].tolist()


def test_a_batch_of_unequal_prompts_equals_each_prompt_alone(model):
    for options in ({"temperature": 0}, {"temperature": 0.9, "top_p": 0.9, "num_samples": 3}):
        alone = [ids_of(model, [prompt], max_new_tokens=12, **options)[0] for prompt in PROMPTS]
        assert ids_of(model, max_new_tokens=12, **options) == alone


def test_draws_do_not_depend_on_when_other_rows_end(model):
    free = first_ids(model, max_new_tokens=24)
    ends = tuple({free[0][2], free[1][4], free[2][9]})
    stopped = first_ids(model, max_new_tokens=24, eos_ids=ends)
    assert min(map(len, stopped)) <= 2
    assert stopped == [row[: min([row.index(end) for end in ends if end in row], default=24)] for row in free]


def test_samples_of_one_prompt_differ_and_come_from_the_seed(model):
    found = ids_of(model, max_new_tokens=20, num_samples=4, seed=4)
    assert all(len({tuple(row) for row in samples}) == 4 for samples in found)
    torch.manual_seed(99)
    assert ids_of(model, max_new_tokens=20, num_samples=4, seed=4) == found
    assert ids_of(model, max_new_tokens=20, num_samples=4, seed=5) != found
    assert ids_of(model, max_new_tokens=20, num_samples=2, seed=4) == [samples[:2] for samples in found]


def test_generating_leaves_the_global_random_state_and_the_mode_alone(model):
    model.train()
    state = torch.get_rng_state()
    first_ids(model, max_new_tokens=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str)
def test_the_narrowest_filters_are_greedy(options, model):
    assert first_ids(model, max_new_tokens=20, temperature=2.0, **options) == first_ids(
        model, max_new_tokens=20, temperature=0
    )


@pytest.mark.parametrize("temperature", [5e-324, 1e-308, 1e-46, 1e-40, 1e-29, 1e-12])
def test_a_temperature_near_zero_is_greedy(temperature, model):
    greedy = first_ids(model, max_new_tokens=20, temperature=0)
    assert first_ids(model, max_new_tokens=20, temperature=temperature) == greedy
    assert first_ids(model, max_new_tokens=20, temperature=temperature, top_k=3, top_p=0.9) == greedy


def test_an_end_token_ends_a_text_and_is_no_part_of_it(model):
    free = first_ids(model, max_new_tokens=20, temperature=0)
    end = free[0][7]
    found = generate(model, PROMPTS, GenerationConfig(max_new_tokens=20, temperature=0, eos_ids=(end,)))
    for row, each in zip(free, found, strict=True):
        assert each[0].ids == (row[: row.index(end)] if end in row else row)
        assert each[0].finish_reason == ("stop" if end in row else "length")
        assert len(each[0].log_probs) == len(each[0].ids)


@torch.no_grad()
def test_log_probabilities_are_those_of_the_unfiltered_model(model):
    found = generate(model, PROMPTS, GenerationConfig(max_new_tokens=9, temperature=0.5, top_k=5, num_samples=2))
    for prompt, samples in zip(PROMPTS, found, strict=True):
        for each in samples:
            logits = model(torch.tensor([prompt + each.ids])).logits_BTV[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1)[range(9), each.ids]
            torch.testing.assert_close(torch.tensor(each.log_probs), expected, atol=1e-5, rtol=1e-4)


def test_a_stop_string_ends_a_text_before_itself_wherever_tokens_are_cut(model):
    free = generate(model, PROMPTS, GenerationConfig(max_new_tokens=20, temperature=0), decode=decode)
    stop = free[0][0].text[7:10]  # from the middle of one token to the middle of the next
    found = generate(
        model, PROMPTS, GenerationConfig(max_new_tokens=20, temperature=0, stop=("zzz", stop)), decode=decode
    )
    for before, after in zip(free, found, strict=True):
        place = before[0].text.find(stop)
        assert after[0].text == (before[0].text[:place] if place >= 0 else before[0].text)
        assert after[0].finish_reason == ("stop" if place >= 0 else "length")
    assert len(found[0][0].ids) <= 5


def test_a_text_that_repeats_itself_is_ended(model):
    free = first_ids(model, [[8]], max_new_tokens=40, temperature=0)[0]
    (found,) = generate(model, [[8]], GenerationConfig(max_new_tokens=40, temperature=0, max_repetitions=3))[0]
    assert found.finish_reason == "repetition"
    assert found.ids == free[: len(found.ids)]
    sizes = [size for size in range(1, 14) if found.ids[-3 * size :] == found.ids[-size:] * 3]
    assert sizes
    shorter = found.ids[:-1]
    assert not [
        size for size in range(1, 14) if len(shorter) >= 3 * size and shorter[-3 * size :] == shorter[-size:] * 3
    ]


def test_a_stream_joins_to_the_whole_text_and_never_gives_back(model):
    for options in ({}, {"stop": (decode([3])[1] + "a",)}):
        config = GenerationConfig(max_new_tokens=20, temperature=0.8, **options)
        ((whole,),) = generate(model, PROMPTS[:1], config, decode=decode)
        assert "".join(stream(model, PROMPTS[0], config, decode)) == whole.text


def test_a_stream_holds_back_half_a_character(model):
    def halves(ids):
        return "é" * (len(ids) // 2) + "\ufffd" * (len(ids) % 2)

    pieces = list(stream(model, [5], GenerationConfig(max_new_tokens=7), halves))
    assert pieces == ["é", "é", "é", "\ufffd"]


def test_a_stream_goes_on_from_a_cache(model):
    config, prompt = GenerationConfig(max_new_tokens=10, temperature=0), PROMPTS[0]
    cache = KVCache(model.config, 1, 48)
    expected = list(stream(model, prompt, config, decode))
    assert list(stream(model, prompt, config, decode, cache)) == expected
    cache.crop(4)
    assert list(stream(model, prompt, config, decode, cache)) == expected


@pytest.mark.parametrize("seed", range(5))
def test_filters_keep_what_those_of_transformers_keep(seed):
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(seed)) * 3
    for ours, theirs in (
        ({"top_k": 7}, transformers.TopKLogitsWarper(7)),
        ({"top_p": 0.8}, transformers.TopPLogitsWarper(0.8)),
        ({"min_p": 0.1}, transformers.MinPLogitsWarper(0.1)),
    ):
        assert torch.equal(keep_likely(logits, **ours).isfinite(), theirs(None, logits).isfinite()), ours


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_k": 9}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_p": 0.7}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.9}, [10 / 19, 6 / 19, 3 / 19, 0]),
        ({"min_p": 0.2}, [10 / 19, 6 / 19, 3 / 19, 0]),
        ({"top_k": 3, "min_p": 0.5}, [0.625, 0.375, 0, 0]),
    ],
)
def test_draws_follow_the_filtered_distribution(options, expected):
    draws = 20_000
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(draws, -1)
    uniforms = torch.rand(draws, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = Counter(draw(keep_likely(logits, **options), uniforms).tolist())
    assert [counts[token] / draws for token in range(4)] == pytest.approx(expected, abs=0.015)
    assert all(counts[token] == 0 for token in range(4) if expected[token] == 0)


def test_the_ends_of_the_unit_interval_draw_possible_tokens():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(2, -1)
    assert draw(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [1, 3]


def test_temperature_sharpens_the_distribution(model):
    found = ids_of(model, [[8]], max_new_tokens=1, temperature=0.5, num_samples=4000)[0]
    with torch.no_grad():
        expected = (model(torch.tensor([[8]])).logits_BTV[0, -1] / 0.5).softmax(-1)
    best = int(expected.argmax())
    assert sum(row == [best] for row in found) / 4000 == pytest.approx(float(expected[best]), abs=0.03)


def test_a_prompt_that_fills_the_context_exactly_is_accepted(model):
    assert len(first_ids(model, [[1] * 40], max_new_tokens=8, temperature=0)[0]) == 8


def test_a_prompt_that_is_too_long_is_a_user_error(model):
    with pytest.raises(UserError, match="longest prompt has 40 tokens; with 9 new ones it exceeds the model's 48"):
        first_ids(model, [[1], [1] * 40], max_new_tokens=9)


@pytest.mark.parametrize("prompts", [[], [[]], [[1], []]], ids=str)
def test_an_empty_prompt_is_a_user_error(model, prompts):
    with pytest.raises(UserError, match="at least one token"):
        first_ids(model, prompts, max_new_tokens=3)


def test_stop_strings_need_a_way_to_decode(model):
    with pytest.raises(UserError, match="Stop strings"):
        generate(model, [[1]], GenerationConfig(stop=("a",)))


def test_no_new_tokens_can_be_asked_for(model):
    assert first_ids(model, max_new_tokens=0) == [[], [], [], []]
