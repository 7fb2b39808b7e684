"""A soft prompt learned by the one training loop."""

from __future__ import annotations

import torch
from counting import COUNTING, CountingRows

from lmlab.data import Loader
from lmlab.models import PromptTuned, Transformer, load_soft_prompt, save_soft_prompt
from lmlab.train import OptimizerConfig, Trainer, TrainerConfig, language_model_step, read_metrics


class Packed(CountingRows):
    """Rows of two documents, after each of whose tokens the same one is wanted: a frozen model can be steered there."""

    def __getitem__(self, index):
        row = super().__getitem__(index)
        row["document_ids"] = row["document_ids"] + (torch.arange(16).numpy() >= 7)
        row["labels"][row["labels"] != -100] = 7
        return row


def test_the_trainer_learns_a_prompt_and_leaves_the_model_as_it_is(tmp_path):
    model = Transformer(COUNTING.model_copy(update={"init_std": 0.4})).initialize(0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tuned = PromptTuned(model, 4, seed=1)
    config = TrainerConfig(
        steps=40,
        batch_size=4,
        precision="fp32",
        device="cpu",
        log_every=1,
        optimizer=OptimizerConfig(learning_rate=0.05, weight_decay=0.0),
    )
    trainer = Trainer(tuned, language_model_step, Loader(Packed(), 4, 3), config, tmp_path / "run")
    trainer.fit()
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    save_soft_prompt(tuned.soft_prompt, tmp_path / "prompt", model)
    ids = torch.arange(6)[None]
    loaded = load_soft_prompt(tmp_path / "prompt", model)
    assert torch.equal(model(ids, soft_prompt=loaded).logits_BTV, tuned(ids).logits_BTV)
