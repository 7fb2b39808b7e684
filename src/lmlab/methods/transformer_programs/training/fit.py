"""Trains many seeds of one shape as one computation, through the one training loop.

Shapes: S seeds, B sequences.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmlab.data import Loader
from lmlab.errors import UserError
from lmlab.hardware import select_device
from lmlab.methods.transformer_programs.config import FitConfig, ShapeConfig
from lmlab.methods.transformer_programs.network.convert import DISCRETE
from lmlab.methods.transformer_programs.network.model import Attention, ProgramTransformer
from lmlab.methods.transformer_programs.network.sampling import Sampler
from lmlab.methods.transformer_programs.network.spec import NetworkSpec
from lmlab.methods.transformer_programs.tasks.dataset import Dataset, Split, accuracy
from lmlab.methods.transformer_programs.training.packed import PackedNetworks
from lmlab.methods.transformer_programs.training.polish import polish
from lmlab.methods.transformer_programs.training.selection import Selection
from lmlab.methods.transformer_programs.training.step import ProgramStep, Temperature
from lmlab.progress import progress
from lmlab.train import OptimizerConfig, ScheduleConfig, Trainer, TrainerConfig, read_metrics
from lmlab.words import counted

_NO_CLIPPING = 1e30  # the paper clips nothing; over all seeds it would let one change another
_CURVE = "valid_accuracy_"  # and a seed: its accuracy in the log
# training sequences and iterations that tell which seeds are worse: seconds a seed, where a step takes milliseconds
_JUDGED_ON, _JUDGED_ITERATIONS = 4000, 40
_SMALL_SPLIT = 2000  # sequences by which seeds are measured on the way


@dataclass
class Fitted:
    """What training gave.

    Attributes:
        seeds: a row for each: seed, accuracies, whether its loss stayed a number and whether it stopped behind others,
            and `soft_gap`: how much more accurate it is as it was trained than its program is before polishing.
        best: the place of the best seed by validation.
        curves: of each evaluation: step and the validation accuracy of each seed.
    """

    model: ProgramTransformer
    seeds: list[dict[str, Any]]
    best: int
    summary: dict[str, Any]
    curves: list[dict[str, Any]] = field(default_factory=list)


class Batches:
    """All batches of a training in their order: row n is the n-th batch, the same on every machine.

    One row is a whole batch, because rows of these networks are a few numbers, and gathering them one by one would take
    as long as the step.
    """

    def __init__(self, rows: int, batch_size: int, steps: int, seed: int) -> None:
        self.rows, self.batch_size, self.steps, self.seed = rows, batch_size, steps, seed
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> dict[str, Any]:
        first = index * self.batch_size
        places = range(first, first + self.batch_size)
        epochs = sorted({place // self.rows for place in places})
        order = np.concatenate([self._order(epoch) for epoch in epochs])
        start = first - epochs[0] * self.rows
        return {"rows": order[start : start + self.batch_size]}

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            if len(self._orders) > 4:  # a batch may lie across several epochs of a small split; more would fill memory
                self._orders.clear()
            self._orders[epoch] = np.random.default_rng((self.seed, epoch)).permutation(self.rows)
        return self._orders[epoch]


def spec_of(shape: ShapeConfig, data: Dataset) -> NetworkSpec:
    """The network of a shape on some data.

    Raises:
        UserError: `d_var` is too small.
    """
    from lmlab.config import validate

    words = 0 if shape.embedding_vars else len(data.vocabulary)
    places = 1 if "positions" in shape.forbid else data.context
    values = {
        **shape.model_dump(exclude={"forbid", "d_var"}),
        "vocabulary": data.vocabulary,
        "labels": data.labels,
        "d_var": shape.d_var or max(words, places),
        "context": data.context,
        "forbid_positions": "positions" in shape.forbid,
        "autoregressive": data.autoregressive,
        "pool_outputs": data.pooled,
        "lower": data.lower,
        "replace_numbers": data.replace_numbers,
    }
    known = {name: value for name, value in values.items() if name in NetworkSpec.model_fields}
    return validate(NetworkSpec, known, "the shape")


def fit(
    spec: NetworkSpec,
    config: FitConfig,
    data: Dataset,
    directory: str | Path,
    embedding_logits: Tensor | None = None,
    seeds: Sequence[int] | None = None,
    start: ProgramTransformer | None = None,
) -> Fitted:
    """Train all seeds, from the newest checkpoint in the directory if there is one, and measure their arg max.

    Arguments:
        seeds: in place of those of the configuration.
        start: a network to go on from, such as one made from an edited program; its seeds are trained.

    Raises:
        UserError: there are fewer steps than its halvings need, its places have no fixed order to be nearest by, or
            the data's tokens or labels are not the network's (`recode`).
        LmlabError: the loss of every seed is no number.
        Interrupted: stopped by a signal; a checkpoint was written.
    """
    directory = Path(directory)
    chosen = tuple(seeds if seeds is not None else range(config.first_seed, config.first_seed + config.seeds))
    attention = Attention(config.attention_noise, config.attention_default, config.attention)
    if (spec.vocabulary, spec.labels) != (data.vocabulary, data.labels):
        raise UserError(
            "The tokens or labels of the data are not those of the network, or stand in another order.",
            "Give the settings 'start', or recode the data for the network.",
        )
    model = start or ProgramTransformer(spec, chosen, attention, embedding_logits)
    model.attention = attention
    if attention.kind == "nearest" and model.spec.position_bias != "fixed":
        raise UserError(
            f"attention 'nearest' goes by the fixed order of places; position_bias is '{model.spec.position_bias}'.",
            "Train with attention 'softmax'.",
        )
    packed = PackedNetworks(model)
    device = select_device(config.device)
    train, valid = _on(data.train, device), _on(data.valid, device)
    batch = min(config.batch_size, len(train))
    steps = max(1, math.ceil(config.epochs * len(train) / batch))
    if steps < 2**config.halvings:
        raise UserError(
            f"halvings {config.halvings} need {2**config.halvings} steps or more, and this training has {steps}:"
            " several would fall on one step.",
            "Give fewer halvings, more epochs or a smaller batch_size.",
        )
    temperature = Temperature(
        config.tau_start, config.tau_end, config.tau_schedule, max(1, round(config.epochs)), steps
    )
    small, some = valid.part(_SMALL_SPLIT), train.part(_JUDGED_ON)

    def accuracy_of(networks: PackedNetworks) -> Tensor:
        return measure(networks.networks(), small)[0]

    def evaluate(networks: PackedNetworks) -> dict[str, float]:
        tokens = accuracy_of(networks)
        return {
            "valid_error": 1 - float(tokens.max()),
            **{f"{_CURVE}{seed}": float(each) for seed, each in zip(networks.seeds, tokens, strict=True)},
        }

    def judge(networks: PackedNetworks, places: Sequence[int]) -> list[float]:
        trial = networks.networks()  # a copy of the weights in training
        for place in places:
            polish(trial, place, some, _JUDGED_ITERATIONS)
        measured = measure(trial, small)[0].tolist()
        return [measured[place] for place in places]

    step = ProgramStep(train, config, temperature, Selection(config, steps, accuracy_of, judge))
    every = max(1, steps // config.evaluations)
    trainer = Trainer(
        packed,
        step,
        Loader(Batches(len(train), batch, steps, 0), 1, 0, shuffle=False),
        TrainerConfig(
            steps=steps,
            batch_size=1,
            optimizer=OptimizerConfig(learning_rate=config.learning_rate, weight_decay=0, betas=(0.9, 0.999)),
            schedule=ScheduleConfig(kind=config.schedule, warmup_fraction=0.0),
            clip_norm=_NO_CLIPPING,
            precision="fp32",
            device=config.device,
            evaluate_every=every,
            checkpoint_every=config.checkpoint_every,
            keep_checkpoints=1,
            log_every=max(1, steps // 200),
        ),
        directory,
        evaluate,
    )
    summary = trainer.fit()
    print(f"Measure the programs of {counted(len(chosen), 'seeds')}, and choose.", file=sys.stderr, flush=True)
    model = packed.networks()
    gaps = _soft_gaps(packed, step, small)
    rows, best = _table(model, packed, data, device)
    for row, each in zip(rows, gaps, strict=True):
        row["soft_gap"] = each
    if config.polish:
        worth = [row["valid_accuracy"] for row in rows]
        if config.judge_by == "accuracy" and config.polish < len(rows):  # what they have after it may be far from that
            worth = judge(packed, range(len(rows)))
            model = packed.networks()
        order = sorted(range(len(rows)), key=lambda place: (rows[place]["diverged"], -worth[place]))
        with progress("polish", min(config.polish, len(order)), "seeds") as advance:
            for place in order[: config.polish]:
                polish(model, place, train)
                advance()
        polished, best = _table(model, packed, data, device)
        for row, before in zip(polished, rows, strict=True):
            row |= {"soft_gap": before["soft_gap"], "valid_accuracy_before_polish": before["valid_accuracy"]}
        rows = polished
    return Fitted(model, rows, best, summary, _curves(directory, chosen))


def _curves(directory: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """From the log, which has the evaluations of earlier attempts too."""
    return [
        {"step": row["step"], "accuracy": [round(row[f"{_CURVE}{seed}"], 6) for seed in seeds]}
        for row in read_metrics(directory / "metrics.jsonl")
        if f"{_CURVE}{seeds[0]}" in row
    ]


def _table(
    model: ProgramTransformer, packed: PackedNetworks, data: Dataset, device: torch.device
) -> tuple[list[dict[str, Any]], int]:
    states = zip(model.seeds, packed.dead.tolist(), packed.stopped.tolist(), strict=True)
    rows: list[dict[str, Any]] = [{"seed": seed, "diverged": dead, "stopped": late} for seed, dead, late in states]
    for name, split in (("valid", data.valid), ("test", data.test)):
        if split is None or not len(split):
            continue
        tokens, sequences = measure(model, _on(split, device))
        for row, token, sequence in zip(rows, tokens.tolist(), sequences.tolist(), strict=True):
            row |= {f"{name}_accuracy": token, f"{name}_sequence_accuracy": sequence}
    best = max(range(len(rows)), key=lambda place: (not rows[place]["diverged"], rows[place]["valid_accuracy"]))
    return rows, best


def _soft_gaps(packed: PackedNetworks, step: ProgramStep, split: Split) -> list[float | None]:
    """How much the accuracy of each seed falls from how it is trained at the end to its arg max; None where it stopped
    before.
    """
    last = max(0, int(packed.num_steps) - 1)
    soft, _ = measure(packed, split, step.sampler(packed, last, step.temperature.at(last)))
    hard, _ = measure(packed.networks(), split)
    return [None if idle else each for idle, each in zip(packed.idle.tolist(), (soft - hard).tolist(), strict=True)]


def measure(
    model: ProgramTransformer | PackedNetworks, split: Split, sample: Sampler = DISCRETE, rows: int = 512
) -> tuple[Tensor, Tensor]:
    """Token and sequence accuracy (S,) on a split, by default of the arg max, which is the program."""
    with torch.no_grad():
        chosen = [model(part, sample).argmax(-1) for part in split.tokens.split(rows)]
    return accuracy(torch.cat(chosen, 1).cpu(), split.labels.cpu())


def _on(split: Split, device: torch.device) -> Split:
    return Split(split.tokens.to(device), split.labels.to(device), split.examples, split.unseen)
