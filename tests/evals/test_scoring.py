"""Log-likelihoods: the same whatever is shared, batched or cut; equal to plain log-softmax."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.evals import ModelScorer, Window
from lmlab.evals.prefix_sharing import share_prefixes
from lmlab.evals.scoring import score_all
from lmlab.models import ModelConfig, Transformer

FEW_SHOT = [random.Random(3).randrange(61) for _ in range(150)]


def few_shot_windows(seed=0, questions=9):
    """Questions after one long prompt, each with options; some options begin alike, one is the beginning of another,
    one stands twice.
    """
    generator = random.Random(seed)
    windows = []
    for _ in range(questions):
        question = FEW_SHOT + [generator.randrange(61) for _ in range(generator.randint(3, 12))]
        start = [generator.randrange(61) for _ in range(2)]
        options = [start + [generator.randrange(61) for _ in range(generator.randint(1, 6))] for _ in range(3)]
        options += [options[0][:2], options[1]]
        windows += [Window(question + option, len(option)) for option in options]
    windows.append(Window([4, 5, 6], 2))
    windows.append(Window([generator.randrange(61) for _ in range(40)], 39))
    return windows


@pytest.fixture(scope="module", params=["rotary", "learned"])
def model(request):
    shape = {"vocab_size": 61, "num_layers": 2, "d_model": 32, "num_heads": 4, "max_seq_len": 256}
    features = (
        {"num_kv_heads": 2}
        if request.param == "rotary"
        else {"positions": "learned", "norm": "layernorm", "gated": False, "vocab_multiple": 8}
    )
    network = Transformer(ModelConfig(**shape, **features)).initialize(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)) * 0.2)
    return network


def by_log_softmax(model, windows):
    """Each window on its own, by all logits."""
    sums, greedy = [], []
    with torch.no_grad():
        for window in windows:
            log_probs = model(torch.tensor([window.ids])).logits_BTV[0].log_softmax(-1)
            places = range(len(window.ids) - window.num_scored, len(window.ids))
            sums.append(sum(float(log_probs[place - 1, window.ids[place]]) for place in places))
            greedy.append(all(int(log_probs[place - 1].argmax()) == window.ids[place] for place in places))
    return sums, greedy


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 60, 100_000])
def test_scores_do_not_depend_on_sharing_or_batches(model, share, batch_tokens):
    windows = few_shot_windows()
    sums, greedy = by_log_softmax(model, windows)
    found = score_all(ModelScorer(model, "fp32", share, batch_tokens), windows)
    assert [score.log_prob for score in found] == pytest.approx(sums, abs=1e-5, rel=1e-6)
    assert [score.greedy for score in found] == greedy


def test_the_most_probable_continuation_is_greedy(model):
    ids = [3, 1, 4, 1, 5]
    for _ in range(3):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits_BTV[0, -1].argmax()))
    first, second = score_all(ModelScorer(model, "fp32"), [Window(ids, 3), Window([*ids[:-1], (ids[-1] + 1) % 61], 3)])
    assert first.greedy
    assert not second.greedy
    assert first.log_prob > second.log_prob


def test_the_order_of_windows_does_not_matter(model):
    windows = few_shot_windows()
    order = list(range(len(windows)))
    random.Random(1).shuffle(order)
    straight = score_all(ModelScorer(model, "fp32"), windows)
    shuffled = score_all(ModelScorer(model, "fp32"), [windows[index] for index in order])
    assert [score.log_prob for score in shuffled] == pytest.approx(
        [straight[index].log_prob for index in order], abs=1e-5
    )


def test_scoring_leaves_a_model_in_training(model):
    model.train()
    score_all(ModelScorer(model, "fp32"), few_shot_windows(questions=1))
    assert model.training
    model.eval()


def test_a_few_shot_prompt_is_read_once_and_a_question_once():
    windows = few_shot_windows()[:-2]
    (group,) = share_prefixes(windows)
    assert group.prefix == len(FEW_SHOT)
    assert len(group.trees) == 9  # one a question, its five options within
    assert all(len(tree.members) == 5 for tree in group.trees)


def test_subjects_with_prompts_of_their_own_become_groups():
    generator = random.Random(0)
    prompts = [[7, 7, 7, *(generator.randrange(61) for _ in range(200))] for _ in range(3)]
    questions = [[generator.randrange(61) for _ in range(8)] for _ in range(150)]
    windows = [
        Window([*prompt, *question, answer], 1) for prompt in prompts for question in questions for answer in (1, 2)
    ]
    assert sorted(group.prefix for group in share_prefixes(windows)) == [203, 203, 203]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 2), min_size=2, max_size=12), st.integers(1, 11)), min_size=1, max_size=30
    ),
    st.booleans(),
)
def test_every_window_is_planned_once_and_no_scored_token_is_in_a_prefix(drawn, long):
    head = [1] * 200 if long else []
    windows = [Window(head + ids, min(scored, len(ids) - 1)) for ids, scored in drawn]
    groups = share_prefixes(windows)
    members = [member for group in groups for tree in group.trees for member in tree.members]
    assert sorted(members) == list(range(len(windows)))
    for group in groups:
        for tree in group.trees:
            beginnings = {tuple(windows[member].ids[: tree.root]) for member in tree.members}
            assert len(beginnings) == 1 and len(beginnings.pop()) == tree.root >= group.prefix
            assert all(
                len(windows[member].ids) - windows[member].num_scored - 1 >= group.prefix for member in tree.members
            )
        prefixes = {tuple(windows[tree.members[0]].ids[: group.prefix]) for tree in group.trees}
        assert len(prefixes) == 1


def test_a_long_context_is_read_once_beside_many_short_ones():
    """Questions about a context that is longer than a tree may be, and as many about short ones, as controls are."""
    generator = random.Random(0)

    def drawn(count):
        return [generator.randrange(61) for _ in range(count)]

    context, questions = drawn(2000), [drawn(30) for _ in range(8)]
    windows = [Window(FEW_SHOT + context + each, 5) for each in questions]
    windows += [Window(FEW_SHOT + each, 5) for each in questions]
    windows += [Window(FEW_SHOT + drawn(150) + each, 5) for each in questions]
    groups = share_prefixes(windows)
    (shared,) = [group for group in groups if group.prefix >= 2150]
    assert sorted(number for tree in shared.trees for number in tree.members) == list(range(8))
    members = sorted(number for group in groups for tree in group.trees for number in tree.members)
    assert members == list(range(24))
