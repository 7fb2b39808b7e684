"""A batch that prompts join and rows leave between steps: nobody notices who else is in it."""

from __future__ import annotations

import pytest
import torch
import transformers

from lmlab.data import Tokenizer
from lmlab.errors import LmlabError
from lmlab.models import Decoding, DecodingConfig, GenerationConfig, KVCache, from_pretrained, generate, save_pretrained
from lmlab.models.generation.lookup import Lookup
from lmlab.models.generation.steps.static import StaticStep

PROMPTS = [[5, 9, 2, 40, 17, 3], [8], [1, 1, 60, 22], [33, 7], [50] * 11, [12, 13, 14]]
SETTINGS = [
    {"temperature": 0},
    {"temperature": 0.9, "top_p": 0.9, "seed": 3},
    {"temperature": 1.3, "top_k": 20, "num_samples": 2},
    {"temperature": 0, "eos_ids": tuple(range(30))},
    {"temperature": 0.9, "top_p": 0.9, "seed": 4, "max_new_tokens": 5},
    {"temperature": 0.7, "min_p": 0.1, "seed": -1},
]
CONFIGS = [DecodingConfig(**{"max_new_tokens": 14, **settings}) for settings in SETTINGS]


def alone(model):
    return [
        [(each.ids, each.finish_reason) for each in generate(model, [p], c)[0]]
        for p, c in zip(PROMPTS, CONFIGS, strict=True)
    ]


def outcome(found):
    return [[(row.ids, row.finish_reason) for row in samples] for samples in found]


@pytest.mark.parametrize("static_after", [None, 0, 1])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "olmo2", "olmoe", "gpt2", "opt", "no_family"])
def test_what_becomes_of_a_prompt_does_not_depend_on_when_others_come_and_go(kind, static_after, make_model):
    model = make_model(kind)
    decoding, found = Decoding(model, static_after=static_after), []
    for prompt, config in zip(PROMPTS, CONFIGS, strict=True):  # one joins, three steps, the next joins
        found += decoding.add([(prompt, config)])
        for _ in range(3):
            decoding.step()
    while decoding.live:
        decoding.step()
    assert outcome(found) == alone(model)
    assert decoding.add([(PROMPTS[0], CONFIGS[0])]) and decoding.length == len(
        PROMPTS[0]
    )  # an empty batch starts afresh


def test_static_steps_give_the_logits_of_others(make_model):
    for kind in ("llama", "gpt2", "qwen3"):
        model = make_model(kind).eval()
        ids = torch.randint(0, 60, (3, 20), generator=torch.Generator().manual_seed(0))
        valid = torch.ones(3, 8, dtype=torch.bool)
        valid[1, :5] = False
        for mask in (None, valid):
            with torch.inference_mode():
                caches = [KVCache(model.config, 3, 24) for _ in range(2)]
                for cache in caches:
                    cache._keys.fill_(float("nan")), cache._values.fill_(float("nan"))  # what fresh memory may hold
                    model(ids[:, :8], attention_mask_BT=mask, cache=cache)
                step = StaticStep(model, caches[1])
                for place in range(8, 20):
                    expected = model(ids[:, place : place + 1], cache=caches[0]).logits_BTV[:, 0]
                    torch.testing.assert_close(step.run(ids[:, place : place + 1]), expected, atol=1e-5, rtol=1e-5)
                # the cache is as if the model had filled it, and goes on with other rows
                for cache in caches:
                    cache.select([2, 1])
                torch.testing.assert_close(
                    *(model(ids[1:, :1], cache=cache).logits_BTV for cache in caches), atol=1e-5, rtol=1e-5
                )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "olmoe"])
def test_recorded_steps_on_a_gpu_continue_as_a_cpu_does(kind, make_model):
    model = make_model(kind)
    settings = [config.model_copy(update={"max_new_tokens": 24, "temperature": 0}) for config in CONFIGS]
    expected = [[row.ids for row in rows] for rows in generate(model, PROMPTS, settings)]
    model = model.cuda()
    assert [[row.ids for row in rows] for rows in generate(model, PROMPTS, settings)] == expected
    decoding, recorded = Decoding(model), []
    decoding.add([(PROMPTS[0], settings[0]), (PROMPTS[1], settings[1])])
    while decoding.live:
        decoding.step()
        recorded.append(decoding._static is not None)
    assert any(recorded) == (kind != "olmoe")


def test_each_prompt_of_a_batch_may_have_its_own_settings(make_model):
    model = make_model("llama")
    assert [
        [(each.ids, each.finish_reason) for each in samples] for samples in generate(model, PROMPTS, CONFIGS)
    ] == alone(model)


def test_dropped_rows_make_room_and_the_others_do_not_notice(make_model):
    model = make_model("llama")
    decoding = Decoding(model)
    found = decoding.add(list(zip(PROMPTS, CONFIGS, strict=True)))
    decoding.step()
    for row in (*found[0], *found[2], *found[4]):
        row.dropped = True
    decoding.step()
    assert len(decoding.rows) == len(decoding.live) <= 3
    while decoding.live:
        decoding.step()
    expected = alone(model)
    assert [outcome(found)[n] for n in (1, 3, 5)] == [expected[n] for n in (1, 3, 5)]
    assert found[0][0].finish_reason is None and len(found[0][0].ids) == 2


def test_a_batch_takes_no_more_room_than_its_longest_row_needs(make_model):
    decoding = Decoding(make_model("llama"))
    ((long,),) = decoding.add([([1] * 20, DecodingConfig(max_new_tokens=3))])
    decoding.add([([2] * 5, DecodingConfig(max_new_tokens=30))])
    assert decoding.length == 20
    while not long.done:
        decoding.step()
    decoding.add([([3], DecodingConfig(max_new_tokens=30))])
    assert decoding.length == 5 + 2  # the padding that the long row had called for is gone


@pytest.mark.parametrize("kind", ["llama", "olmoe", "gpt2"])
@torch.no_grad()
def test_log_probabilities_equal_those_of_transformers(kind, make_model, tmp_path):
    model = make_model(kind)
    save_pretrained(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    config = DecodingConfig(max_new_tokens=7, temperature=0.8, num_samples=2, top_log_probs=3, score_prompt=True)
    for prompt, samples in zip(PROMPTS, generate(model, PROMPTS, config), strict=True):
        for each in samples:
            check_log_probs(theirs, prompt, each, top=3)


def check_log_probs(theirs, prompt, found, top, atol=2e-5):
    """Those of the prompt, of the new tokens, and of the likeliest ones at each place."""
    expected = theirs(torch.tensor([[*prompt, *found.ids]])).logits[0].float().log_softmax(-1)
    before = len(prompt)
    assert found.prompt_scores.log_probs[0] is None and found.prompt_scores.top[0] == []
    log_probs = torch.tensor(found.prompt_scores.log_probs[1:] + found.log_probs)
    targets = torch.tensor([*prompt[1:], *found.ids])
    torch.testing.assert_close(log_probs, expected[:-1].gather(1, targets[:, None])[:, 0], atol=atol, rtol=1e-4)
    tops = found.prompt_scores.top[1:] + found.top
    best = expected[: before - 1 + len(found.ids)].topk(top).values
    torch.testing.assert_close(
        torch.tensor([[p for _, p in place] for place in tops]).view(-1, top), best, atol=atol, rtol=1e-4
    )
    assert all(
        torch.allclose(expected[n][[i for i, _ in place]], best[n], atol=10 * atol) for n, place in enumerate(tops)
    )


def test_a_prompt_can_be_scored_without_going_on(make_model):
    model = make_model("llama")
    scored, whole = (
        generate(model, PROMPTS, DecodingConfig(max_new_tokens=new, score_prompt=True, temperature=0, top_log_probs=2))
        for new in (0, 3)
    )
    for (a,), (b,) in zip(scored, whole, strict=True):
        assert a.ids == [] and a.finish_reason == "length" and len(b.ids) == 3
        assert a.prompt_scores.log_probs[1:] == pytest.approx(b.prompt_scores.log_probs[1:], abs=1e-5)


def test_long_prompts_are_scored_in_pieces(make_model):
    model = make_model("llama", max_seq_len=256)
    prompt = torch.randint(0, 61, (200,), generator=torch.Generator().manual_seed(1)).tolist()
    ((found,),) = generate(model, [prompt], DecodingConfig(max_new_tokens=0, score_prompt=True))
    with torch.no_grad():
        expected = model(torch.tensor([prompt])).logits_BTV[0].log_softmax(-1)
    assert found.prompt_scores.log_probs[1:] == pytest.approx(expected[range(199), prompt[1:]].tolist(), abs=1e-4)


def test_a_bias_moves_the_choice_and_not_the_reported_log_probabilities(make_model):
    model = make_model("llama")
    forced = DecodingConfig(max_new_tokens=4, temperature=1.0, logit_bias=((17, 100.0), (23, 100.0)))
    ((found,),) = generate(model, [PROMPTS[0]], forced)
    assert set(found.ids) <= {17, 23}
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0] + found.ids])).logits_BTV[0, len(PROMPTS[0]) - 1 : -1]
    assert found.log_probs == pytest.approx(logits.log_softmax(-1)[range(4), found.ids].tolist(), abs=1e-5)
    banned = DecodingConfig(max_new_tokens=4, temperature=0, logit_bias=tuple((token, -100.0) for token in range(60)))
    assert generate(model, [PROMPTS[0]], banned)[0][0].ids == [60] * 4


def test_rows_of_several_caches_stand_side_by_side(make_model, ids):
    model = make_model("llama")
    short, long = KVCache(model.config, 2, 4), KVCache(model.config, 3, 9)
    with torch.no_grad():
        model(ids[:2, :4], attention_mask_BT=torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]), cache=short)
        model(ids[:, :9], cache=long)
        joined = KVCache.side_by_side([(short, [0]), (long, [2, 0])], room=2)
        assert (joined.batch_size, joined.length, joined.max_length, joined.real_lengths().tolist()) == (
            3,
            9,
            11,
            [2, 9, 9],
        )
        found = model(torch.tensor([[7], [7], [7]]), cache=joined).logits_BTV[:, 0]
        for row, before in enumerate((ids[0, 2:4], ids[2, :9], ids[0, :9])):
            whole = model(torch.cat((before, torch.tensor([7])))[None]).logits_BTV[0, -1]
            torch.testing.assert_close(found[row], whole, atol=1e-5, rtol=1e-5)
    assert KVCache.side_by_side([(joined, [0])], room=0).length == 3
    with pytest.raises(ValueError, match="shares a prefix"):
        KVCache.side_by_side([(long.fork(1, 4), [0])], room=1)


@pytest.mark.slow
def test_smollm2_joined_by_others_writes_and_scores_as_transformers_does(smollm2):
    model, tokenizer = from_pretrained(smollm2), Tokenizer.load(smollm2)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2).eval()
    texts = [
        "The capital of France is",
        "def fibonacci(n):\n    ",
        "Water boils at",
        "Once upon a time, in a small village by the sea,",
    ]
    prompts = [tokenizer.encode(text) for text in texts]
    config = DecodingConfig(max_new_tokens=24, temperature=0, top_log_probs=5, score_prompt=True)
    decoding, found = Decoding(model), []
    for prompt in prompts:
        found += decoding.add([(prompt, config)])
        decoding.step()
    while decoding.live:
        decoding.step()
    with torch.no_grad():
        for prompt, (row,) in zip(prompts, found, strict=True):
            expected = theirs.generate(
                torch.tensor([prompt]), max_new_tokens=24, min_new_tokens=24, do_sample=False, pad_token_id=2
            )
            assert row.ids == expected[0, len(prompt) :].tolist()
            check_log_probs(theirs, prompt, row, top=5, atol=2e-4)
    sampled = GenerationConfig(max_new_tokens=16, temperature=0.8, top_p=0.95, seed=11)
    together = generate(model, prompts, sampled)
    assert [each[0].ids for each in together] == [generate(model, [prompt], sampled)[0][0].ids for prompt in prompts]


REPEATING = [5, 9, 2, 40, 17, 3] * 3
DRAWN = [
    {"temperature": 0},
    {"temperature": 0.4, "seed": 1, "top_p": 0.9},
    {"temperature": 0, "eos_ids": tuple(range(0, 60, 7))},
    {"temperature": 0, "max_repetitions": 3},
    {"temperature": 0.9, "seed": 2, "repetition_penalty": 1.2, "logit_bias": ((9, 4.0), (2, 4.0))},
    {"temperature": 0, "top_log_probs": 3, "max_new_tokens": 1},
]


class CountsPasses:
    """Counts passes and the tokens in them."""

    def __init__(self, model):
        self.passes = 0
        model.register_forward_pre_hook(self)

    def __call__(self, *_):
        self.passes += 1


@pytest.mark.parametrize("settings", DRAWN)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "olmoe"])
def test_drafts_change_nothing_but_the_number_of_passes(kind, settings, make_model):
    model = make_model(kind).double()
    config = DecodingConfig(**{"max_new_tokens": 30, **settings})
    plain, drafted = (
        generate(model, [REPEATING], config.model_copy(update={"draft_tokens": most}))[0][0] for most in (0, 5)
    )
    assert drafted.ids == plain.ids and drafted.finish_reason == plain.finish_reason
    assert drafted.log_probs == pytest.approx(plain.log_probs, abs=1e-6)
    assert [[token for token, _ in each] for each in drafted.top] == [
        [token for token, _ in each] for each in plain.top
    ]


def test_a_text_that_repeats_itself_takes_fewer_passes(make_model):
    model = make_model("llama").double()
    counts = CountsPasses(model)
    for most, passes in ((0, 29), (7, 7)):  # the prompt, two tokens alone, and then eight with each pass
        counts.passes = 0
        config = DecodingConfig(max_new_tokens=29, temperature=0, draft_tokens=most, logit_bias=((7, 1e4),))
        assert generate(model, [REPEATING], config)[0][0].ids == [7] * 29
        assert counts.passes == passes


def test_drafts_that_never_hold_become_rare():
    lookup, asked = Lookup([1, 2, 3] * 4, 4), []
    for count in range(200):
        if found := lookup.draft([1, 2, 3] * (count + 1), 10):
            asked.append(count)
            assert found == [1, 2, 3, 1]
            lookup.judge(0)
    assert 5 <= len(asked) <= 12
    lookup.judge(2)
    assert lookup.draft([1, 2, 3] * 201, 2) == [1, 2]


def test_a_draft_is_what_followed_the_last_time():
    lookup = Lookup([1, 2, 9, 1, 2, 8, 4, 1, 2], 3)
    assert lookup.draft([], 9) == [8, 4, 1]
    assert lookup.draft([8, 5, 1, 2], 9) == [8, 5, 1]
    assert Lookup([4, 1, 2, 1, 2], 7).draft([], 5) == [1, 2, 1, 2, 1]  # and round once more
    assert lookup.draft([8, 5, 1, 2, 6, 6, 1], 9) == [] and Lookup([3], 4).draft([], 4) == []


def test_rows_in_a_batch_and_texts_behind_a_prefix_take_no_harm_from_drafts(make_model):
    model = make_model("qwen3").double()
    configs = [DecodingConfig(max_new_tokens=12, temperature=0, draft_tokens=most) for most in (4, 0, 6)]
    prompts = [REPEATING, PROMPTS[0], PROMPTS[4]]
    together = generate(model, prompts, configs)
    assert [each[0].ids for each in together] == [
        generate(model, [prompt], DecodingConfig(max_new_tokens=12, temperature=0))[0][0].ids for prompt in prompts
    ]
    cache = KVCache(model.config, 1, len(REPEATING) + 12, torch.float64)
    decoding = Decoding(model)
    decoding.read(REPEATING[:10], cache)
    ((row,),) = decoding.add([(REPEATING, configs[0])], cache)
    while decoding.live:
        decoding.step()
    assert row.ids == together[0][0].ids


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 0.9, "top_p": 0.9}])
def test_a_row_whose_logits_are_no_numbers_takes_no_other_with_it(settings, make_model):
    model = make_model("olmo2")
    assert model.head is not None  # else a damaged embedding would be part of all logits
    config = DecodingConfig(max_new_tokens=9, **settings)
    prompts = [[5, 9, 2, 40], [17, 3], [8, 8, 8]]
    expected = [generate(model, [prompt], config)[0][0].ids for prompt in prompts]
    wrong = next(id for id in range(60) if id not in {0}.union(*expected, *prompts))
    with torch.no_grad():
        model.embedding.weight[wrong] = float("nan")
    decoding = Decoding(model, raises=False)
    begun = decoding.add([(prompt, config) for prompt in prompts[:2]])
    decoding.step()
    failing, joined = decoding.add([([wrong], config), (prompts[2], config)])
    for _ in range(3):
        decoding.step()
    begun[1][0].last = wrong  # within the text now
    while decoding.live:
        decoding.step()
    assert begun[0][0].ids == expected[0] and joined[0].ids == expected[2]
    assert failing[0].ids == [] and begun[1][0].ids == expected[1][:5]
    for row in (failing[0], begun[1][0]):
        assert row.done and row.finish_reason is None and "not numbers" in str(row.failure)
    with pytest.raises(LmlabError, match="not numbers"):
        generate(model, [prompts[0], [wrong]], config)
