"""A known answer: pairs of keys and values, read in segments, are asked for when only their summaries are left.

A model that learns it has written what it read into vectors, and has read it there: a later segment sees nothing else
of an earlier one. What replaces vectors instead of keeping them (RMT) must carry the first pairs through the second
summary.

Shapes: B rows, T tokens of a row.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from lmlab.data import Batch, Loader
from lmlab.methods.autocompressor.compressor.model import AutoCompressor
from lmlab.methods.autocompressor.config import CompressorConfig, SegmentsConfig
from lmlab.methods.autocompressor.kinds.base import create
from lmlab.methods.autocompressor.kinds.trained import Trained
from lmlab.methods.autocompressor.training.step import CompressorStep
from lmlab.models import IGNORE, ModelConfig, Transformer
from lmlab.train import OptimizerConfig, ScheduleConfig, Trainer, TrainerConfig

# Few, so that what is learned is to recall and not to tell words apart; four of the keys stand in a row.
KEYS = VALUES = 8
_QUERY, _BEGIN = KEYS + VALUES + 1, KEYS + VALUES + 2
VOCABULARY = KEYS + VALUES + 3
# Two of BEGIN and two pairs, and one of four questions.
CONTEXT = 10
SEGMENTS = SegmentsConfig(blocks=1, segments=3, random=False, lengths=(5, 5, 12))
Kind = Literal["accumulate", "replace", "none"]
_SHAPE = {
    "vocab_size": VOCABULARY,
    "num_layers": 2,
    "d_model": 64,
    "num_heads": 4,
    "d_ff": 128,
    "max_seq_len": 64,
    "norm_eps": 1e-6,
    "tie_embeddings": False,
    "output_init": "same",
    "init_std": 0.0722,  # PyTorch's own for layers of this width; with 0.02 the first 2,000 steps are plateaus
}
_HELD_OUT = 987_654_321  # a seed that no training has
_STD = 0.5  # of the first embeddings: the task has no words that are rarer than others


class RecallRows:
    """Rows of two segments `BEGIN key value key value` with four different keys in all, and a third with four questions
    `QUERY key value` in any order; the four values are learned.

    Arguments:
        count: how many; each depends on the seed and its number alone.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self._seed, index))
        keys = rng.permutation(KEYS)[:4]
        values = KEYS + rng.integers(0, VALUES, 4)
        segments = [[_BEGIN, keys[i], values[i], keys[i + 1], values[i + 1]] for i in (0, 2)]
        order = rng.permutation(4)
        asked = [token for place in order for token in (_QUERY, keys[place], values[place])]
        ids = np.array([*segments[0], *segments[1], *asked], np.int64)
        labels, sources = np.full(len(ids), IGNORE), np.full(len(ids), -1)
        places = CONTEXT + 3 * np.arange(4) + 1  # those of the keys, which predict the values
        labels[places] = ids[places + 1]
        sources[places] = order // 2
        return {"input_ids": ids, "labels": labels, "sources": sources}


class RecallContexts:
    """The same rows for kinds of compression: both segments as the context, the questions as what follows."""

    def __init__(self, count: int, seed: int) -> None:
        self._rows = RecallRows(count, seed)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        ids, labels = row["input_ids"], row["labels"]
        return {"context": ids[:CONTEXT], "input_ids": ids[CONTEXT:], "labels": labels[CONTEXT:]}


def recall_compressor(kind: Kind, seed: int, summary_length: int = 4) -> AutoCompressor:
    """The small model that learns the task: 2 layers, 64 wide, 4 heads."""
    model = Transformer(ModelConfig.model_validate(_SHAPE)).initialize(seed)
    config = CompressorConfig(
        summary_length=0 if kind == "none" else summary_length, accumulate=kind != "replace", trained_segments=3
    )
    compressor = AutoCompressor(model, config)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for table in (model.embedding.weight, compressor.summary_embedding_ND):
            table.copy_(_STD * torch.randn(table.shape, generator=generator))
    return compressor


def recall_trainer(
    kind: Kind, seed: int, steps: int, directory: str, summary_length: int = 4, **settings: Any
) -> Trainer:
    """A training on fresh rows, at a constant rate. Evaluations tell `heldout_accuracy`, and by the segment that held
    the answer `heldout_accuracy/segment_1` and `.../segment_2`.

    Arguments:
        settings: fields of `TrainerConfig`.
    """
    config = recall_training(steps, **settings)
    loader = Loader(RecallRows(64 * steps, seed), config.batch_size, seed)
    step = CompressorStep(SEGMENTS)
    return Trainer(recall_compressor(kind, seed, summary_length), step, loader, config, directory, recall_accuracy)


def recall_training(steps: int, **settings: Any) -> TrainerConfig:
    """How the task is learned, by whatever kind of compression."""
    return TrainerConfig(
        steps=steps,
        batch_size=64,
        optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.01, betas=(0.9, 0.95)),
        schedule=ScheduleConfig(kind="constant", warmup_fraction=0),
        precision="fp32",
        device="cpu",
        **({"log_every": 100, "checkpoint_every": steps} | settings),
    )


def fit_recall(kind: str, seed: int, slots: int, config: TrainerConfig, directory: str) -> Trained:
    """Train a kind of compression on the task, from the first weights that the method has; its evaluations tell
    `heldout_accuracy`.

    Arguments:
        kind: any that learns, but for summaries, which `recall_trainer` trains.
        slots: positions that are left of the context.
    """
    model = recall_compressor("none", seed).model
    compressor = create(kind, model, ratio=CONTEXT / slots, seed=seed, init_std=_STD)
    assert isinstance(compressor, Trained) and config.steps is not None
    return compressor.fit_on(RecallContexts(64 * config.steps, seed), config, directory, memory_accuracy)


@torch.no_grad()
def memory_accuracy(compressor: Trained, count: int = 512) -> dict[str, float]:
    """The share of values that the model finds most probable behind memories, on the rows of `recall_accuracy`."""
    rows = RecallContexts(count, _HELD_OUT)
    found = [rows[number] for number in range(count)]
    context, ids, labels = (torch.from_numpy(np.stack([row[key] for row in found])) for key in rows[0])
    memory = compressor.encode(context, compressor.config.ratio)
    right = compressor.model(ids, memory=memory).logits_BTV.argmax(-1) == labels
    return {"heldout_accuracy": float(right[labels >= 0].float().mean())}


@torch.no_grad()
def recall_accuracy(compressor: AutoCompressor, count: int = 512) -> dict[str, float]:
    """The share of values that the model finds most probable, on rows that no training has."""
    rows = RecallRows(count, _HELD_OUT)
    chosen = [rows[number] for number in range(count)]
    batch: Batch = {name: torch.from_numpy(np.stack([row[name] for row in chosen])) for name in chosen[0]}
    out = compressor(batch["input_ids"], segment_lengths=list(SEGMENTS.lengths or ()), summary_length=None, logits=True)
    assert out.logits_BTV is not None
    right = out.logits_BTV.argmax(-1) == batch["labels"]
    found = {"heldout_accuracy": float(right[batch["sources"] >= 0].float().mean())}
    for number in range(2):
        found[f"heldout_accuracy/segment_{number + 1}"] = float(right[batch["sources"] == number].float().mean())
    return found
