"""Preference losses against closed forms, and the reference's figures on disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional as F

from lmlab.data import Example, KTOExample, KTORows, Loader, PreferencePair, PreferenceRows, example_row
from lmlab.errors import UserError
from lmlab.models import ModelConfig, Transformer, save_pretrained, token_log_probs
from lmlab.train import (
    DPOConfig,
    KTOConfig,
    OptimizerConfig,
    SimPOConfig,
    Trainer,
    TrainerConfig,
    dpo_step,
    kto_step,
    language_model_step,
    read_metrics,
    reference_log_probs,
    sequence_log_probs,
    simpo_step,
)
from lmlab.train.tuning import reference

CONFIG = ModelConfig(
    vocab_size=50, num_layers=2, d_model=16, num_heads=2, num_kv_heads=1, d_ff=40, max_seq_len=32, init_std=0.5
)
SEQ_LEN = 14


def model(seed: int = 0, **changes) -> Transformer:
    return Transformer(ModelConfig(**{**CONFIG.model_dump(), **changes})).initialize(seed)


def exact(seed: int = 0, **changes) -> Transformer:
    """In double precision, so that a comparison is not one of rounding errors."""
    return model(seed, **changes).double()


def examples(count: int, seed: int = 0) -> list[tuple[Example, int]]:
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        prompt, answer = random.integers(2, 7), random.integers(1, 8)
        found.append(
            (
                Example(random.integers(0, 50, prompt + answer).tolist(), [0] * int(prompt) + [1] * int(answer)),
                int(prompt),
            )
        )
    return found


def pairs(count: int = 5) -> list[PreferencePair]:
    made = []
    for (chosen, prompt), (other, after) in zip(examples(count), examples(count, 1), strict=True):
        ids = chosen.ids[:prompt] + other.ids[after:]
        made.append(PreferencePair(chosen, Example(ids, [0] * prompt + [1] * (len(ids) - prompt))))
    return made


def labeled(count: int = 5) -> list[KTOExample]:
    return [KTOExample(example, prompt, number % 3 != 0) for number, (example, prompt) in enumerate(examples(count))]


def stack(rows):
    return {name: torch.from_numpy(np.stack([rows[number][name] for number in range(len(rows))])) for name in rows[0]}


def by_hand(network: Transformer, example: Example) -> torch.Tensor:
    """Sum of log p(next) over the learned tokens, without padding, from plain logits."""
    log_probs = network(torch.tensor([example.ids[:-1]])).logits_BTV[0].log_softmax(-1)
    return sum(
        log_probs[at, id] for at, (id, keep) in enumerate(zip(example.ids[1:], example.mask[1:], strict=True)) if keep
    )


def gradients(loss, network):
    return torch.autograd.grad(loss, list(network.parameters()))


def assert_same_gradients(ours, theirs, network):
    for mine, other in zip(gradients(ours, network), gradients(theirs, network), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": False}, {"vocab_multiple": 64}], ids=["tied", "untied", "padded"]
)
def test_sequence_log_probs_are_those_of_plain_logits_with_gradients(changes):
    network = exact(**changes)
    batch = stack(PreferenceRows(pairs(), SEQ_LEN))
    sums, counts = sequence_log_probs(
        network, batch["chosen_input_ids"], batch["chosen_labels"], batch["chosen_document_ids"]
    )
    expected = torch.stack([by_hand(network, pair.chosen) for pair in pairs()])
    torch.testing.assert_close(sums, expected, atol=1e-5, rtol=1e-5)
    assert counts.tolist() == [sum(pair.chosen.mask) for pair in pairs()]
    weights = torch.arange(1.0, 6, dtype=torch.double)
    assert_same_gradients(
        (weights * sums.sigmoid()).sum() + sums @ weights,
        (weights * expected.sigmoid()).sum() + expected @ weights,
        network,
    )


@pytest.mark.parametrize("block_size", [1, 5, None])
def test_token_log_probs_in_blocks_have_the_gradients_of_torch(block_size):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(shape, generator=generator, dtype=torch.double).requires_grad_() for shape in ((3, 7, 8), (20, 8))
    )
    labels = torch.randint(0, 17, (3, 7), generator=generator)
    labels[:, ::3] = -100
    scale = torch.randn(3, 7, generator=generator, dtype=torch.double)
    ours = token_log_probs(hidden, weight, labels, vocab_size=17, block_size=block_size)
    theirs = -F.cross_entropy((hidden @ weight[:17].T).flatten(0, 1), labels.flatten(), reduction="none").view(3, 7)
    torch.testing.assert_close(ours, theirs)
    for each in zip(*(torch.autograd.grad((x * scale).sum(), (hidden, weight)) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(*each)


def closed_form(config: DPOConfig, chosen, rejected, lengths):
    if config.length_normalized or config.loss == "ipo":
        chosen, rejected = chosen / lengths[0], rejected / lengths[1]
    lead = chosen - rejected
    if config.loss == "ipo":
        return (lead - 0.5 / config.beta) ** 2
    if config.loss == "hinge":
        return (1 - config.beta * lead).clamp(min=0)
    smoothing = config.label_smoothing
    return -(1 - smoothing) * torch.log(1 / (1 + torch.exp(-config.beta * lead))) - smoothing * torch.log(
        1 / (1 + torch.exp(config.beta * lead))
    )


@pytest.mark.parametrize(
    "settings",
    [{}, {"label_smoothing": 0.2}, {"loss": "ipo"}, {"loss": "hinge"}, {"length_normalized": True, "beta": 5.0}],
    ids=str,
)
def test_dpo_is_its_closed_form(settings):
    config, network, frozen = DPOConfig(**settings), exact(), exact(1)
    both = [(pair.chosen, pair.rejected) for pair in pairs()]
    with torch.no_grad():
        reference = [torch.stack([by_hand(frozen, pair[side]) for pair in both]) for side in (0, 1)]
    batch = stack(PreferenceRows(pairs(), SEQ_LEN)) | {
        "reference_chosen": reference[0],
        "reference_rejected": reference[1],
    }
    output = dpo_step(config)(network, batch)
    ratios = [torch.stack([by_hand(network, pair[side]) for pair in both]) - reference[side] for side in (0, 1)]
    expected = closed_form(config, *ratios, [torch.tensor([sum(pair[side].mask) for pair in both]) for side in (0, 1)])
    torch.testing.assert_close(output.loss_sum, expected.sum(), atol=1e-5, rtol=1e-5)
    assert output.count == 5
    if not settings:
        found = {name: float(value / count) for name, (value, count) in output.sums.items()}
        assert found["rewards_chosen"] == pytest.approx(0.1 * float(ratios[0].mean().detach()), abs=1e-5)
        assert found["margins"] == pytest.approx(found["rewards_chosen"] - found["rewards_rejected"], abs=1e-5)
        assert found["accuracies"] == float((ratios[0] > ratios[1]).float().mean())
    assert_same_gradients(output.loss_sum, expected.sum(), network)


def test_simpo_is_its_closed_form():
    network = exact()
    output = simpo_step(SimPOConfig(beta=2.0, margin=0.5))(network, stack(PreferenceRows(pairs(), SEQ_LEN)))
    mean = [[by_hand(network, each) / sum(each.mask) for each in (pair.chosen, pair.rejected)] for pair in pairs()]
    expected = sum(-torch.log(torch.sigmoid(2 * (chosen - rejected) - 0.5)) for chosen, rejected in mean)
    torch.testing.assert_close(output.loss_sum, expected, atol=1e-5, rtol=1e-5)


def test_kto_is_its_closed_form():
    network, frozen, items = exact(), exact(1), labeled()
    rows = KTORows(items, SEQ_LEN)
    batch = stack(rows)
    mismatched = []
    for this, other in zip(items, items[1:] + items[:1], strict=True):
        ids = this.example.ids[: this.prompt_length] + other.example.ids[other.prompt_length :]
        mismatched.append(Example(ids, [0] * this.prompt_length + [1] * (len(ids) - this.prompt_length)))
    with torch.no_grad():
        references = [
            torch.stack([by_hand(frozen, each) for each in both])
            for both in ([item.example for item in items], mismatched)
        ]
        divergence = (torch.stack([by_hand(network, each) for each in mismatched]) - references[1]).mean()
    expected = 0.0
    for shift in (0.0, 100.0):  # a divergence below 0 counts as 0
        z = (divergence - shift).clamp(min=0)
        output = kto_step(KTOConfig(desirable_weight=2.0))(
            network, batch | {"reference": references[0], "reference_kl": references[1] + shift}
        )
        ratios = [
            by_hand(network, item.example) - reference for item, reference in zip(items, references[0], strict=True)
        ]
        signed = zip(items, ratios, strict=True)
        expected = sum(
            (2 * (1 - torch.sigmoid(0.1 * (r - z)))) if item.desirable else 1 - torch.sigmoid(0.1 * (z - r))
            for item, r in signed
        )
        torch.testing.assert_close(output.loss_sum, expected, atol=1e-5, rtol=1e-5)
        assert float(output.sums["kl"][0] / output.sums["kl"][1]) == pytest.approx(float(z), abs=1e-5)
    assert_same_gradients(output.loss_sum, expected, network)


def test_a_mismatched_answer_has_another_prompt():
    same = [KTOExample(Example([1, 2, 10 + number], [0, 0, 1]), 2, True) for number in range(2)]
    other = [KTOExample(Example([3, 20 + number], [0, 1]), 1, False) for number in range(2)]
    rows = KTORows(same + other, 4)
    assert [row["kl_labels"].max() for row in (rows[0], rows[1], rows[2], rows[3])] == [20, 20, 10, 10]
    with pytest.raises(UserError, match="All examples have one prompt"):
        KTORows(same, 4)


def test_supervised_loss_of_a_masked_row_is_that_of_transformers(tmp_path):
    network = model()
    save_pretrained(network, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    example, _ = examples(1)[0]
    row = {name: torch.from_numpy(values)[None] for name, values in example_row(example, SEQ_LEN).items()}
    output = language_model_step(network, row)
    labels = torch.tensor([[id if keep else -100 for id, keep in zip(example.ids, example.mask, strict=True)]])
    expected = theirs(torch.tensor([example.ids]), labels=labels).loss
    torch.testing.assert_close(output.loss_sum / output.count, expected, atol=1e-5, rtol=1e-5)


def test_examples_that_do_not_fit_are_user_errors():
    with pytest.raises(UserError, match="rows of seq_len 3 hold 4"):
        PreferenceRows(pairs(), 3)
    with pytest.raises(UserError, match="no example"):
        PreferenceRows([], 3)
    with pytest.raises(UserError, match="reference_chosen has 1 values for 5"):
        PreferenceRows(pairs(), SEQ_LEN, reference={"reference_chosen": np.zeros(1)})


def test_reference_figures_are_computed_once_and_again_only_for_what_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "_ROWS_A_FILE", 2)
    calls = []
    compute = reference._compute
    monkeypatch.setattr(reference, "_compute", lambda *arguments: calls.append(arguments[2]) or compute(*arguments))
    frozen, rows, options = model(1), PreferenceRows(pairs(), SEQ_LEN), {"device": "cpu", "precision": "fp32"}
    found = reference_log_probs(frozen, rows, tmp_path, **options)
    with torch.no_grad():
        for side in ("chosen", "rejected"):
            expected = [float(by_hand(frozen, getattr(pair, side))) for pair in pairs()]
            np.testing.assert_allclose(found[f"reference_{side}"], expected, rtol=1e-5, atol=1e-5)
    assert calls == [range(0, 2), range(2, 4), range(4, 5)]
    part = next(tmp_path.glob("*/rows-000000002.npy"))
    part.write_bytes(part.read_bytes()[:-3])  # cut off, as by a full disk
    again = reference_log_probs(frozen, rows, tmp_path, **options)
    assert calls[3:] == [range(2, 4)]
    assert all(np.array_equal(found[name], again[name]) for name in found)
    reference_log_probs(model(2), rows, tmp_path, **options)
    reference_log_probs(frozen, PreferenceRows(pairs()[:2], SEQ_LEN), tmp_path, **options)
    reference_log_probs(frozen, KTORows(labeled(2), SEQ_LEN), tmp_path, **options)
    assert len(calls) == 9
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_the_loop_learns_preferences(method, tmp_path):
    made, make = (pairs(8), PreferenceRows) if method == "dpo" else (labeled(8), KTORows)
    network = model()
    figures = reference_log_probs(network, make(made, SEQ_LEN), tmp_path / "reference", device="cpu", precision="fp32")
    loader = Loader(make(made, SEQ_LEN, reference=figures), 4, seed=0)
    config = TrainerConfig(
        steps=20,
        batch_size=4,
        precision="fp32",
        device="cpu",
        log_every=1,
        optimizer=OptimizerConfig(learning_rate=3e-3),
    )
    step = dpo_step(DPOConfig()) if method == "dpo" else kto_step(KTOConfig())
    Trainer(network, step, loader, config, tmp_path / "run").fit()
    course = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert course[0]["loss"] == pytest.approx(
        np.log(2) if method == "dpo" else 0.5, abs=1e-5
    )  # the model is the reference
    assert course[-1]["loss"] < course[0]["loss"] - 0.1
    assert course[-1]["rewards_chosen"] > course[-1]["rewards_rejected"]
