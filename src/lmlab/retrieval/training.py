"""Training an encoder on queries with documents that answer them and such that do not."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmlab.data.loader import Loader
from lmlab.errors import UserError
from lmlab.retrieval.encoders.bodies import CoreBody
from lmlab.retrieval.encoders.encoder import TextEncoder
from lmlab.words import counted


@dataclass(frozen=True)
class TrainingPair:
    """A query, the document that answers it, and documents that do not."""

    query: str
    positive: str
    negatives: tuple[str, ...] = ()


def train_encoder(
    encoder: TextEncoder,
    pairs: Sequence[TrainingPair],
    directory: Path,
    steps: int = 200,
    batch_size: int = 16,
    learning_rate: float = 2e-5,
    temperature: float = 0.05,  # as sentence-transformers has it (a scale of 20)
    seed: int = 0,
    **trainer: Any,
) -> tuple[TextEncoder, dict[str, Any]]:
    """A copy of an encoder, trained by InfoNCE with negatives from the batch and hard ones; and the training's summary.

    Arguments:
        pairs: all with the same number of negatives.
        directory: of checkpoints, from which a training that was cut off goes on.
        trainer: further settings of `lmlab.train.TrainerConfig`.

    Raises:
        UserError: the encoder's network is not one of ours, dense layers follow it, or there are too few pairs.
    """
    from lmlab.train import OptimizerConfig, Trainer, TrainerConfig
    from lmlab.train.tuning.contrastive import ContrastiveExample, ContrastiveRows, contrastive_step

    if not isinstance(encoder.body, CoreBody) or encoder.heads:
        raise UserError(f"'{encoder.name}' is no encoder whose network can be trained here.")
    if len(pairs) < batch_size:
        raise UserError(f"{counted(len(pairs), 'pairs are')} fewer than a batch of {batch_size}.", "Lower the batch.")
    numbers: dict[str, int] = {}
    examples = []
    for pair in pairs:
        texts = [pair.positive, *pair.negatives]
        (query,) = encoder.tokenize([pair.query], "query")
        documents = encoder.tokenize(texts, "document")
        examples.append(
            ContrastiveExample(query, documents, [numbers.setdefault(text, len(numbers)) for text in texts])
        )
    network = copy.deepcopy(encoder.body.module).train().requires_grad_(True)
    rows = ContrastiveRows(examples, encoder.tokenizer.pad_id)
    config = TrainerConfig(
        steps=steps,
        batch_size=batch_size,
        optimizer=OptimizerConfig(name="adamw", learning_rate=learning_rate, weight_decay=0.01),
        **{"device": encoder.device, "precision": "fp32", "checkpoint_every": max(1, steps), **trainer},
    )
    skipped = (0, 0)
    if not encoder.pool_prompt:
        before = encoder.tokenizer.prompt_length
        skipped = (before(encoder.prompt("query")), before(encoder.prompt("document")))
    step = contrastive_step(encoder.modes, temperature, encoder.normalize, skipped)
    fitted = Trainer(network, step, Loader(rows, batch_size, seed), config, directory)
    summary = fitted.fit()
    trained = encoder.variant(body=CoreBody(network.eval().requires_grad_(False)))
    trained.__dict__.pop("_weights_hash", None)
    return trained, summary
