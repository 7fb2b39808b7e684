"""Step functions for language models."""

from __future__ import annotations

from lmlab.data import Batch
from lmlab.models import Transformer
from lmlab.train.trainer import StepOutput


def language_model_step(model: Transformer, batch: Batch) -> StepOutput:
    """Next-token cross-entropy in nats, summed over the labels of packed rows (see `PackedRows`)."""
    loss = model(batch["input_ids"], labels_BT=batch["labels"], document_ids_BT=batch["document_ids"]).loss
    return StepOutput(loss.sum, loss.count)
