"""Mixtures of experts while they learn: losses beside any step function, figures of loads, warnings, saturation."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from counting import counting_trainer
from moe_worker import SPARSE, sparse_trainer

import lmlab
from lmlab.errors import LmlabError
from lmlab.models import ModelConfig, Transformer, load_balancing_loss
from lmlab.models.moe.losses import RouterAccounts
from lmlab.train import (
    DPOConfig,
    KTOConfig,
    RoutedStep,
    StepOutput,
    TrainerConfig,
    WrappedStep,
    dpo_step,
    kto_step,
    language_model_step,
    normalized_entropy,
    read_metrics,
    routed,
    with_saturation,
)
from lmlab.train.steps.step import after_step

SETTINGS = {"steps": 3, "batch_size": 8, "precision": "fp32", "device": "cpu", "log_every": 1, "checkpoint_every": 3}


def sparse(**moe) -> Transformer:
    config = SPARSE.model_dump()
    config["moe"] |= moe
    return Transformer(ModelConfig.model_validate(config)).initialize(0).train()


def batch(rows: int = 4, length: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 50, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    return {
        "input_ids": ids[:, :-1],
        "labels": ids[:, 1:].clone(),
        "document_ids": torch.zeros(rows, length, dtype=torch.long),
    }


def test_losses_enter_what_is_learned_and_are_logged_as_they_are_and_weighted(tmp_path):
    sparse_trainer(tmp_path, TrainerConfig(**SETTINGS)).fit()
    for row in read_metrics(tmp_path / "metrics.jsonl"):
        assert row["load_balancing_loss_weighted"] == pytest.approx(0.1 * row["load_balancing_loss"])
        assert row["loss"] == pytest.approx(
            row["task_loss"] + row["load_balancing_loss_weighted"] + row["router_z_loss_weighted"], rel=1e-6
        )
        assert (
            1 <= row["routing/max_load"] <= 2 and 0 <= row["routing/min_load"] <= 1 and 0 < row["routing/entropy"] <= 1
        )
        assert row["routing/max_load"] == max(row["routing/max_load/0"], row["routing/max_load/1"])


def preferences(rows: int = 3, length: int = 10) -> dict[str, torch.Tensor]:
    found = {}
    for seed, side in enumerate(("chosen_", "rejected_", "", "kl_")):
        found |= {side + name: value for name, value in batch(rows, length, seed).items()}
        found[f"{side}document_ids"][:, 7:] = -1
        found[f"{side}labels"][:, 7:] = -100
    zeros = torch.zeros(rows)
    return found | {
        "reference_chosen": zeros,
        "reference_rejected": zeros,
        "reference": zeros,
        "reference_kl": zeros,
        "desirable": torch.tensor([1, 0, 1]),
    }


@pytest.mark.parametrize(
    "step", [language_model_step, dpo_step(DPOConfig()), kto_step(KTOConfig())], ids=["sft", "dpo", "kto"]
)
def test_adaptation_learns_from_the_losses_of_routers_if_asked(step):
    gradients = []
    for losses in (False, True):
        model = sparse(load_balancing_loss={"coef": 1.0, "granularity": "micro_batch"})
        output = RoutedStep(step, model.config, losses)(model, preferences())
        output.loss_sum.backward()
        total, count = output.sums["load_balancing_loss"]
        assert 0.9 < float(total / count) < 2.1
        weighted = float(output.sums["load_balancing_loss_weighted"][0] / count)
        assert weighted == pytest.approx(float(total / count) if losses else 0.0)
        gradients.append(model.mixtures[0].router.weight.grad.clone())
    assert not torch.allclose(*gradients)


def test_padding_of_preferences_is_not_counted():
    model = sparse()
    seen = []
    model.register_forward_hook(lambda module, arguments, output: seen.append(output.router_losses))
    dpo_step(DPOConfig())(model, preferences())
    assert float(seen[0].num_tokens) == 2 * 3 * 7


def test_a_step_of_micro_batches_counts_all_of_them_once():
    model, step = sparse(), routed(language_model_step, SPARSE)
    for seed in range(3):
        step(model, batch(seed=seed)).loss_sum.backward()
    running = model.router_accounts.counts_of_step
    assert float(running[-1]) == 3 * 48
    figures = step.after_step(model)
    assert model.router_accounts.counts_of_step is None and figures["routing/dead_experts"] == 0
    expected = running[:-1].view(2, 4)
    assert figures["routing/max_load"] == pytest.approx(float((expected / expected.mean(1, keepdim=True)).max()))
    assert (model.mixtures[0].bias_E != 0).any()  # moved by the same counts
    assert step.after_step(model) == {}


def test_micro_batches_of_a_global_batch_learn_what_one_batch_does():
    """With counts of the whole batch, the weighted mean of E sum f P_m is E sum f P: the last of two micro-batches sees
    all counts.
    """
    model = sparse()
    whole, parts = (
        batch(4),
        [{key: value[rows] for key, value in batch(4).items()} for rows in (slice(0, 2), slice(2, 4))],
    )
    with torch.no_grad():
        model.eval()
        routers = model(whole["input_ids"]).routers
        logits, indices = [each.logits_BTE for each in routers], [each.indices for each in routers]
        together = float(load_balancing_loss(logits, indices))
    model.train()
    step = routed(language_model_step, SPARSE)
    values = []
    for part in (*parts, parts[0]):
        values.append(step(model, part).sums["load_balancing_loss"])
    second = float(values[1][0] / values[1][1])
    assert abs(second - together) < abs(float(values[0][0] / values[0][1]) - together) + 0.05


def test_processes_with_unequal_tokens_have_the_loss_of_all_tokens_together():
    """Each takes the counts of all and its own probabilities: weighted by tokens, their losses are E sum f P of the
    whole batch.
    """
    model, whole = sparse(), batch(4)
    mask = torch.ones(4, 12, dtype=torch.bool)
    mask[0, 5:] = False  # 29 tokens on one process, 12 on the other
    with torch.no_grad():
        routers = model(whole["input_ids"]).routers
        together = load_balancing_loss(
            [each.logits_BTE for each in routers], [each.indices for each in routers], mask_BT=mask
        )
        accounts, parts = RouterAccounts(SPARSE.moe), (slice(0, 3), slice(3, 4))
        shares = [model(whole["input_ids"][rows]).routers for rows in parts]
        own = [RouterAccounts(SPARSE.moe).losses(each, mask[rows]) for each, rows in zip(shares, parts, strict=True)]
        counts = sum(torch.cat((each.counts_LE.flatten(), each.num_tokens[None])) for each in own)
        accounts.sum_counts = lambda _: counts
        losses = []
        for each, rows in zip(shares, parts, strict=True):
            losses.append(accounts.losses(each, mask[rows]).load_balancing)
            accounts.end_step()
    assert [float(each.num_tokens) for each in own] == [29, 12]
    assert float((29 * losses[0] + 12 * losses[1]) / 41) == pytest.approx(float(together), rel=1e-6)
    assert abs(float(own[1].load_balancing) - float(together)) > 1e-4


def stub(counts: list[list[float]], tokens: int = 100, loss: float = 1.0) -> RoutedStep:
    """A routed step after a pass with these counts: what warns is tested without thousands of steps of training."""
    step = routed(language_model_step, SPARSE)
    step._counts_LE = torch.tensor(counts, dtype=torch.float64)
    step._balancing = [torch.tensor(loss)]
    return step


def test_dead_experts_high_loads_and_high_losses_are_said_once(capsys):
    model, step = sparse(), stub([[0.0, 9, 9, 9], [1, 1, 1, 97]])
    wide = Transformer(
        ModelConfig.model_validate(
            SPARSE.model_dump() | {"moe": {"num_experts": 16, "top_k": 2, "expert_hidden_size": 8}}
        )
    )
    for _ in range(105):
        step._counts_LE, step._balancing = (
            torch.tensor([[0.0, 9, 9, 9], [1, 1, 1, 97]], dtype=torch.float64),
            [torch.tensor(2.5)],
        )
        figures = step.after_step(model)
    assert figures["routing/dead_experts"] == 1
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("routers of layers 0 have experts without a token for 100 steps") == 1
    assert said.count("routers of layers 0, 1 have a load-balancing loss above 2 in the mean") == 1
    step = routed(language_model_step, wide.config)
    uneven = torch.ones(2, 16, dtype=torch.float64)
    uneven[1, 3] = 1000
    for _ in range(103):
        step._counts_LE = uneven
        step.after_step(wide)
    assert (
        " ".join(capsys.readouterr().err.split()).count(
            "routers of layers 1 load an expert with more than 8 times the mean"
        )
        == 1
    )


def test_a_small_micro_batch_is_told_to_use_the_global_batch(capsys):
    model = sparse(load_balancing_loss={"granularity": "micro_batch"})
    routed(language_model_step, model.config)(model, batch(1, 4))
    assert "set load_balancing_loss.granularity: global_batch" in " ".join(capsys.readouterr().err.split())


def test_dense_models_are_left_alone():
    dense = ModelConfig(vocab_size=50, num_layers=1, d_model=16, num_heads=2)
    assert routed(language_model_step, dense) is language_model_step


def test_saturation_between_evaluations():
    model, data = sparse(), batch()

    def evaluate(network) -> dict[str, float]:
        network.eval()
        with torch.no_grad():
            network(data["input_ids"])
        return {"heldout_loss": 1.0}

    measured = with_saturation(evaluate)
    assert measured(model) == {"heldout_loss": 1.0}
    assert measured(model)["routing_saturation"] == 1
    with torch.no_grad():
        for mixture in model.mixtures:
            mixture.router.weight.neg_()
    assert measured(model)["routing_saturation"] == 0  # 2 of 4 experts: the others


def test_entropy_of_loads():
    assert normalized_entropy(torch.tensor([[5.0, 5, 5, 5], [9, 0, 0, 0], [0, 0, 0, 0]])).tolist() == pytest.approx(
        [1, 0, 1]
    )


def test_routers_that_are_not_finite_stop_the_training_with_layer_and_step(tmp_path):
    trainer = sparse_trainer(tmp_path, TrainerConfig(**SETTINGS))
    with torch.no_grad():
        trainer.model.mixtures[1].router.weight[0] = float("inf")
    with pytest.raises(LmlabError, match="router of layer 1 are not finite. It happened at step 1"):
        trainer.fit()


def test_what_a_step_function_does_after_each_step_is_logged(tmp_path):
    class Counted:
        def __init__(self) -> None:
            self.steps = 0

        def __call__(self, model, data) -> StepOutput:
            return language_model_step(model, data)

        def after_step(self, model) -> dict[str, float]:
            self.steps += 1
            return {"done": float(self.steps)}

    counting_trainer(tmp_path, TrainerConfig(**SETTINGS, micro_batch_size=2), step_function=Counted()).fit()
    assert [row["done"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_a_step_function_within_others_is_told_of_each_step():
    """Gates or temperatures that follow steps count on a mixture of experts as on a dense model."""

    class Counting(WrappedStep):
        steps = 0

        def close_step(self, model) -> dict[str, float]:
            self.steps += 1
            return {"steps": float(self.steps)}

    inner = Counting(language_model_step)
    step = WrappedStep(routed(WrappedStep(inner), SPARSE))
    assert isinstance(step.step, RoutedStep)
    model = sparse()
    for number in (1, 2):
        step(model, batch(seed=number))
        figures = after_step(step, model)
        assert figures["steps"] == number and "routing/max_load" in figures
    assert after_step(language_model_step, model) == {}


def test_every_step_function_with_one_inside_passes_it_on():
    """A class of the package that takes a step function and is one itself derives from WrappedStep."""
    package = Path(lmlab.__file__).parent
    wrappers = []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.ClassDef):
                continue
            methods = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
            annotations = [ast.unparse(each) for each in ast.walk(methods.get("__init__", ast.Pass())) if each]
            if "__call__" in methods and any(text == "StepFunction" for text in annotations):
                wrappers.append(node.name)
                bases = [ast.unparse(base) for base in node.bases]
                assert node.name == "WrappedStep" or "WrappedStep" in bases, f"{path}: {node.name}"
    assert {"WrappedStep", "RoutedStep"} <= set(wrappers)


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_losses_and_figures_at_every_step():
    plain, compiled = sparse(), sparse()
    compiled.compile()
    steps = [routed(language_model_step, SPARSE) for _ in range(2)]
    for number in range(2):
        outputs = [step(model, batch(seed=number)) for step, model in zip(steps, (plain, compiled), strict=True)]
        assert outputs[1].loss_sum.item() == pytest.approx(outputs[0].loss_sum.item(), rel=1e-5)
        figures = [step.after_step(model) for step, model in zip(steps, (plain, compiled), strict=True)]
        assert figures[1] == pytest.approx(figures[0])
