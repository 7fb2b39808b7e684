"""DPO and KTO against `trl` on the same batches: losses, rewards and gradients."""

from __future__ import annotations

import pytest
import torch

from lmlab.data import Tokenizer
from lmlab.models import ModelConfig, Transformer, from_pretrained, save_pretrained
from lmlab.train import DPOConfig, KTOConfig, dpo_step, kto_step, sequence_log_probs

trl = pytest.importorskip("trl", reason="trl, the independent reference, is not installed")
datasets = pytest.importorskip("datasets", reason="datasets, which trl needs, is not installed")
pytestmark = pytest.mark.slow

TRAINING = {"report_to": "none", "per_device_train_batch_size": 4, "use_cpu": True, "bf16": False}
PROMPTS = ["one and", "two or more", "a", "what then, if"]
BETTER, WORSE = [" two is three", " less", " b c d", " not"], [" one", " many are here", " x", " so it is said"]
LABELS = [True, False, True, True]


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """A policy and a reference, both far from uniform, as lmlab writes them."""
    tokenizer = Tokenizer.train([" ".join(PROMPTS + BETTER + WORSE)], 280)
    sizes = {
        "vocab_size": 280,
        "num_layers": 2,
        "d_model": 16,
        "num_heads": 2,
        "num_kv_heads": 1,
        "d_ff": 40,
        "max_seq_len": 64,
    }
    made = []
    for seed in (0, 1):
        made.append(tmp_path_factory.mktemp("model"))
        save_pretrained(
            Transformer(ModelConfig(**sizes, tie_embeddings=False, init_std=0.3)).initialize(seed), made[-1]
        )
        tokenizer.save(made[-1])
    return made


def theirs(trainer_class, config, rows, directories):
    """Loss, metrics and batch of a trainer, with the gradients in its model."""
    import transformers

    networks = [
        transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32) for directory in directories
    ]
    tokenizer = transformers.AutoTokenizer.from_pretrained(directories[0])
    dataset = datasets.Dataset.from_list(rows)
    trainer = trainer_class(
        model=networks[0], ref_model=networks[1], args=config, train_dataset=dataset, processing_class=tokenizer
    )
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    metrics = {name: values[-1] for name, values in trainer._metrics["eval"].items() if values}
    return loss.detach(), metrics, batch, networks[0]


def columns(batch, side="", prefix=""):
    """Their columns as ours."""
    ids, mask, attention = (batch[f"{side}{name}"] for name in ("input_ids", "completion_mask", "attention_mask"))
    return {
        f"{prefix}input_ids": ids[:, :-1],
        f"{prefix}labels": ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100),
        f"{prefix}document_ids": 1 - attention[:, :-1],
    }


def reference_of(model, batch, prefix):
    with torch.no_grad():
        return sequence_log_probs(model, *(batch[prefix + name] for name in ("input_ids", "labels", "document_ids")))[0]


def assert_same(model, output, loss, network, tmp_path):
    torch.testing.assert_close(output.loss_sum / output.count, loss, atol=1e-5, rtol=1e-5)
    (output.loss_sum / output.count).backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.grad)
    network.save_pretrained(tmp_path / "gradients")  # by way of weights they get our names
    expected = dict(from_pretrained(tmp_path / "gradients").named_parameters())
    assert max(float(each.abs().max()) for each in expected.values()) > 1e-2
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[name], atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(
    ("theirs_name", "ours"),
    [
        ("sigmoid", {}),
        ("ipo", {"loss": "ipo"}),
        ("hinge", {"loss": "hinge"}),
        ("sigmoid_norm", {"length_normalized": True}),
    ],
)
def test_dpo(theirs_name, ours, directories, tmp_path):
    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in zip(PROMPTS, BETTER, WORSE, strict=True)]
    config = trl.DPOConfig(output_dir=str(tmp_path), loss_type=[theirs_name], beta=0.3, **TRAINING)
    loss, metrics, batch, network = theirs(trl.DPOTrainer, config, rows, directories)
    policy, frozen = (from_pretrained(directory) for directory in directories)
    halves = [{name: values[half] for name, values in columns(batch).items()} for half in (slice(0, 4), slice(4, 8))]
    mine = {
        f"{side}_{name}": values
        for side, half in zip(("chosen", "rejected"), halves, strict=True)
        for name, values in half.items()
    }
    mine |= {f"reference_{side}": reference_of(frozen, mine, f"{side}_") for side in ("chosen", "rejected")}
    output = dpo_step(DPOConfig(beta=0.3, **ours))(policy, mine)
    assert_same(policy, output, loss, network, tmp_path)
    names = {"logps_chosen": "logps/chosen", "logps_rejected": "logps/rejected"}
    if theirs_name in ("sigmoid", "hinge"):  # theirs are rewards of whole sequences whatever the loss
        names |= {
            "rewards_chosen": "rewards/chosen",
            "rewards_rejected": "rewards/rejected",
            "margins": "rewards/margins",
        }
        names["accuracies"] = "rewards/accuracies"
    for name, other in names.items():
        assert float(output.sums[name][0] / output.sums[name][1]) == pytest.approx(metrics[other], abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("exchanged", [False, True], ids=["divergence", "other sign"])
def test_kto(exchanged, directories, tmp_path):
    directories = directories[::-1] if exchanged else directories
    rows = [{"prompt": p, "completion": c, "label": label} for p, c, label in zip(PROMPTS, BETTER, LABELS, strict=True)]
    config = trl.KTOConfig(
        output_dir=str(tmp_path), beta=0.3, undesirable_weight=1.5, train_sampling_strategy="sequential", **TRAINING
    )
    loss, metrics, batch, network = theirs(trl.KTOTrainer, config, rows, directories)
    policy, frozen = (from_pretrained(directory) for directory in directories)
    mine = (
        columns(batch)
        | columns(batch, "KL_", "kl_")
        | {"desirable": torch.tensor([int(label) for label in batch["label"]])}
    )
    mine |= {"reference": reference_of(frozen, mine, ""), "reference_kl": reference_of(frozen, mine, "kl_")}
    output = kto_step(KTOConfig(beta=0.3, undesirable_weight=1.5))(policy, mine)
    assert_same(policy, output, loss, network, tmp_path)
    for name, other in {
        "kl": "kl",
        "rewards_chosen": "rewards/chosen",
        "rewards_rejected": "rewards/rejected",
        "logps_chosen": "logps/chosen",
    }.items():
        assert float(output.sums[name][0] / output.sums[name][1]) == pytest.approx(metrics[other], abs=1e-5, rel=1e-5)
