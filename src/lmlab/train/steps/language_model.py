"""Step functions for language models."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lmlab.data import Batch
from lmlab.models import Transformer
from lmlab.train.steps.step import StepFunction, StepOutput


def language_model_step(model: Transformer, batch: Batch) -> StepOutput:
    """Next-token cross-entropy in nats, summed over the labels of packed rows (see `PackedRows`)."""
    loss = model(
        batch["input_ids"],
        labels_BT=batch["labels"],
        document_ids_BT=batch["document_ids"],
        position_ids_BT=batch.get("position_ids"),
    ).loss
    return StepOutput(loss.sum, loss.count)


def language_model_step_by_domain(domains: Sequence[str], z_loss: float = 0.0) -> StepFunction:
    """A step function like `language_model_step` that also gives the loss of each domain, as `loss/DOMAIN`.

    Arguments:
        domains: names of the numbers in `domain_ids`.
        z_loss: coefficient of the z-loss, which is then given as `z_loss`.
    """

    def step(model: Transformer, batch: Batch) -> StepOutput:
        labels = batch["labels"]
        loss = model(
            batch["input_ids"],
            labels_BT=labels,
            document_ids_BT=batch["document_ids"],
            position_ids_BT=batch.get("position_ids"),
            z_loss=z_loss,
        ).loss
        kept = batch["domain_ids"].masked_fill(labels == -100, len(domains)).flatten()
        sums = torch.zeros(len(domains) + 1, dtype=loss.tokens.dtype, device=labels.device).index_add_(
            0, kept, loss.tokens.flatten()
        )
        counts = torch.bincount(kept, minlength=len(domains) + 1)
        by_domain = {f"loss/{name}": (sums[number], counts[number]) for number, name in enumerate(domains)}
        return StepOutput(
            loss.sum, loss.count, by_domain | ({"z_loss": (torch.as_tensor(loss.z_loss), loss.count)} if z_loss else {})
        )

    return step
