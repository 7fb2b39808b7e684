"""What all stages that train have in common: the network and where it comes from, the plan on paper, held-out figures,
the export, the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict

from lmlab.config import flatten
from lmlab.data import Rows, Tokenizer
from lmlab.distributed import world
from lmlab.errors import UserError
from lmlab.files import read_json
from lmlab.hardware import gemm_flops, select_device, select_dtype
from lmlab.models import WITHOUT_WEIGHTS, LoRAConfig, ModelConfig, Transformer, save_pretrained
from lmlab.models.lora.quantized import require_bitsandbytes
from lmlab.progress import duration, with_unit
from lmlab.reports import Figure, Series, format_bytes, format_duration, line_chart
from lmlab.runs import Model, Results
from lmlab.stages.parts.adapters import Adapters, adapted, refuse_shares
from lmlab.train import (
    Evaluation,
    Plan,
    StepFunction,
    TrainerConfig,
    checkpoints,
    estimate,
    go_on,
    load_weights,
    read_metrics,
    way_of,
    whole_tensors,
)
from lmlab.words import counted

_TYPICAL_UTILIZATION = 0.35  # of a GPU's or CPU's peak in matrix products; small models reach less
_BUSY = 0.25  # of the cores, by others, before a training: its speed is then not what the machine gives
_LENGTHS = ("trainer.steps", "trainer.tokens", "trainer.epochs")
_MAY_CHANGE = (*_LENGTHS, "trainer.schedule.", "trainer.precision")
_BANDWIDTH_WITHIN = 400 * 10**9  # bytes a second of a GPU's NVLink, in collectives
_BANDWIDTH_BETWEEN = 50 * 10**9  # and of its network port of 400 Gbit/s


class TrainingResults(Results):
    """What every training tells: the summary of the loop, and the last figures that it logged.

    Further fields are figures on held-out rows after the last step: `heldout_loss`, `heldout_accuracies` and the like.

    Attributes:
        seconds: of the loop, over all attempts; `data_wait_seconds` and `checkpoint_pause_seconds` are parts of it.
        load_before: share of the cores that other work kept busy when it began; None where that is not told.
        utilization: share of the measured GEMM peak; None where the arithmetic of a step is not known.
        final_loss: mean of the last ten logged losses, in nats a token.
    """

    model_config = ConfigDict(extra="allow")

    steps: int
    tokens: int
    epochs: float
    seconds: float
    tokens_per_second: float
    data_wait_seconds: float
    checkpoint_pause_seconds: float
    device: str
    processes: int
    precision: str
    gemm_peak_flops: float
    achieved_flops: float | None
    load_before: float | None = None
    utilization: float | None
    peak_memory_bytes: int | None
    final_loss: float

    def heldout(self, figure: str) -> float | None:
        """A figure on held-out rows after the last step, such as `loss`; None where it was not measured."""
        return (self.model_extra or {}).get(f"heldout_{figure}")


def planned_model(
    model: ModelConfig | None, start: str | None, promised: Mapping[str, Any] | None = None
) -> ModelConfig | None:
    """The model that will be trained: the one that is asked for, else that of `start`, which an earlier stage has
    `promised` or a directory holds; None where neither is known.
    """
    if model is not None or start is None:
        return model
    if promised is not None and "start" in promised:
        shape: ModelConfig | None = promised["start"]
        return shape
    return Model.find(start).config if Path(start).exists() else None


def promised_model(
    model: ModelConfig | None, start: str | None, lora: LoRAConfig | None, promised: Mapping[str, Any]
) -> ModelConfig | None:
    """The shape of the model that a training will write, with its adapters folded in."""
    shape = planned_model(model, start, promised)
    return shape if shape is None or lora is None else lora.folded(shape)


def plan_training(
    model: ModelConfig | None, seq_len: int, trainer: TrainerConfig, lora: LoRAConfig | None = None
) -> dict[str, str]:
    """Length, parameters, arithmetic, memory, communication and time: label -> text.

    Without a model, the length alone.
    """
    steps = trainer.num_steps(seq_len)
    length = (
        f"{trainer.epochs:g} epochs"
        if steps is None
        else f"{counted(steps * trainer.batch_size * seq_len, 'tokens')} in {counted(steps, 'steps')}"
    )
    return {"length": length} | ({} if model is None else _plan_model(model, seq_len, trainer, steps, lora))


def _plan_model(
    model: ModelConfig, seq_len: int, trainer: TrainerConfig, steps: int | None, lora: LoRAConfig | None
) -> dict[str, str]:
    place = world()
    refuse_shares(lora)
    device = select_device(trainer.device)
    dtype = select_dtype(trainer.precision, device)
    needs = estimate(model, seq_len, trainer, place, dtype, lora)
    peak = gemm_flops(str(device), dtype)
    seconds = needs.flops * (steps or 1) / peak / _TYPICAL_UTILIZATION
    parts = [
        (needs.weights, "weights"),
        (needs.gradients, "gradients"),
        (needs.optimizer, "optimizer"),
        (needs.activations, "activations"),
    ]
    if needs.gathered:
        parts.append((needs.gathered, "gathered weights"))
    rows = {
        "parameters": f"{model.num_parameters():,} ({model.num_parameters(embedding=False):,} without embeddings)"
        + (f", {needs.trained:,} of adapters are trained" if lora else ""),
        "arithmetic": with_unit(needs.flops, "FLOP") + " a step" + (" and process" if place.size > 1 else ""),
        "memory": (
            f"about {format_bytes(needs.memory)}: " + ", ".join(f"{format_bytes(size)} {name}" for size, name in parts)
        ),
        "time": (
            f"about {duration(seconds)}{'' if steps else ' a step'} on {device} at {_TYPICAL_UTILIZATION:.0%} of its"
            f" {with_unit(peak, 'FLOP/s')}"
        ),
    }
    if lora is not None and lora.quantize is not None:
        require_bitsandbytes(lora.quantize)
        rows["quantized"] = (
            f"frozen linear layers as {lora.quantize}; before that the weights are read whole,"
            f" {format_bytes(4 * model.num_parameters())}"
        )
    if place.size > 1:
        replicas, shards = trainer.parallel.layout(place)
        rows["processes"] = (
            f"{place.size} on {place.nodes} machines: {replicas} x {shards} (copies x shares, {trainer.parallel.kind})"
        )
        sharing = trainer.parallel.sequence_parallel
        if sharing > 1:
            way = way_of(model, sharing, trainer.parallel.sequence_attention)
            rows["sequences"] = (
                f"{sharing} processes share a row ({way}), {counted(-(-seq_len // sharing), 'tokens')} each:"
                f" {format_bytes(needs.sequence_bytes)} to bring them together, a step and process,"
                f" {duration(needs.sequence_bytes / _BANDWIDTH_WITHIN)} at {format_bytes(_BANDWIDTH_WITHIN)}/s"
            )
        slowest = max(needs.traffic / _BANDWIDTH_WITHIN, needs.network_bytes / _BANDWIDTH_BETWEEN)
        rows["communication"] = (
            f"{format_bytes(needs.gather_bytes)} to gather weights and {format_bytes(needs.reduce_bytes)} to sum"
            f" gradients, a step and process; {format_bytes(needs.network_bytes)} of it over the network:"
            f" {duration(slowest)} at {format_bytes(_BANDWIDTH_WITHIN)}/s within and"
            f" {format_bytes(_BANDWIDTH_BETWEEN)}/s between machines, beside"
            f" {duration(needs.flops / peak / _TYPICAL_UTILIZATION)} of arithmetic"
        )
    return rows


def continues_training(
    trainer: TrainerConfig,
    seq_len: int,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    finished: bool,
    place: Path,
) -> str | None:
    """Whether a training that was begun with other settings goes on with these: a sentence that says how.

    Its length and its schedule may change as `lmlab.train.optimization.plan` says, and the precision.

    Arguments:
        seq_len: tokens of a row.
        before, after: the configurations of the stage (`influences`), with the loop's under `trainer`.
        finished: it had reached its end; there is something to go on with only if it becomes longer.
        place: the stage's directory.

    Raises:
        UserError: what was trained would have been trained otherwise.
    """
    old, new = flatten(before), flatten(after)
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if not all(name.startswith(_MAY_CHANGE) for name in changed):
        return None
    longer = [name for name in changed if name in _LENGTHS]
    if finished and not longer:
        return None
    steps, newest = trainer.num_steps(seq_len), next(reversed(checkpoints(place / "checkpoints")), None)
    how = ""
    if steps is not None and newest is not None:
        state = read_json(newest / "state.json")
        if finished and steps <= state["step"]:
            return None
        wanted = Plan(trainer.schedule, steps, seq_len * trainer.batch_size)
        how = go_on(Plan.of(state["plan"]), wanted, state["step"])[1]
    return "; ".join(f"{name}: {old.get(name)} -> {new.get(name)}" for name in changed) + f". {how}".rstrip(". ") + "."


def build_network(config: ModelConfig, start: Model | None, seed: int, lora: Adapters | None = None) -> Transformer:
    """The network with its weights, and adapters if they are asked for; on the meta device, to be filled later, where
    many processes each hold a share.
    """
    if lora is not None:
        assert start is not None
        return adapted(start, config, lora, seed)
    if start is not None and start.checkpoint is None:
        changed = [name for name, value in config if value != getattr(start.config, name)]
        if changed and set(changed) <= WITHOUT_WEIGHTS and config.positions == "rotary":
            loaded = start.load()
            network = Transformer(config)
            network.load_state_dict(loaded.state_dict())
            network.read_as = loaded.read_as
            return network
        if changed:
            raise UserError(
                f"The model in '{start.path}' differs from the one that is asked for in: {', '.join(changed)}.",
                "Leave out 'model'.",
            )
        return start.load()
    if world().size == 1:
        return Transformer(config).initialize(seed)
    with torch.device("meta"):
        return Transformer(config)


def export_model(model: torch.nn.Module, config: ModelConfig, tokenizer: Tokenizer, directory: Path) -> None:
    """Write the trained model as one process sees it."""
    whole = whole_tensors(model)
    if world().is_main:
        with torch.device("meta"):
            copy = Transformer(config)
        copy = copy.to_empty(device="cpu")
        load_weights(copy, whole, str(directory))
        save_pretrained(copy, directory, tokens={"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id})


def heldout_evaluation(step: StepFunction, rows: Rows, rows_at_once: int) -> Evaluation:
    """The figures of a step function on held-out rows, as `heldout_loss` and the like."""

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        totals: dict[str, list[float]] = {}
        for first in range(0, len(rows), rows_at_once):
            chosen = [rows[number] for number in range(first, min(first + rows_at_once, len(rows)))]
            output = step(
                model, {key: torch.from_numpy(np.stack([row[key] for row in chosen])).to(device) for key in chosen[0]}
            )
            for name, (total, count) in {"loss": (output.loss_sum, output.count), **output.sums}.items():
                so_far = totals.setdefault(name, [0.0, 0.0])
                so_far[0], so_far[1] = so_far[0] + float(total), so_far[1] + float(count)
        return {f"heldout_{name}": total / count for name, (total, count) in totals.items() if count}

    return evaluate


def final_figures(directory: Path) -> dict[str, float]:
    """`final_loss`, the mean of the last ten logged losses, and what held-out rows gave after the last step:
    `heldout_loss` and the like.
    """
    rows = read_metrics(directory / "metrics.jsonl")
    losses = [row["loss"] for row in rows][-10:]
    heldout = {key: value for key, value in rows[-1].items() if key.startswith("heldout_")}
    return {"final_loss": sum(losses) / len(losses), **heldout}


def utilization(results: TrainingResults) -> str:
    """The share of this machine's GEMM peak, as text, marked where other work had the machine busy."""
    if not results.utilization:
        return "unknown"
    busy = (results.load_before or 0.0) > _BUSY
    return f"{results.utilization:.0%}" + (" (on a busy machine)" if busy else "")


def training_facts(results: TrainingResults) -> dict[str, str]:
    """Figures of a training for the report."""
    return {
        "Final loss": f"{results.final_loss:.3f} nats",
        "Training time": format_duration(results.seconds),
        "Waiting for data": f"{results.data_wait_seconds / max(results.seconds, 1e-9):.2%}",
        "Checkpoint pauses": format_duration(results.checkpoint_pause_seconds),
        "Device": (
            f"{results.device}, {results.precision}"
            + (f", {results.processes} processes" if results.processes > 1 else "")
        ),
        "GEMM peak": with_unit(results.gemm_peak_flops, "FLOP/s"),
        "Load before": "unknown" if results.load_before is None else f"{results.load_before:.0%} of the cores",
        "Peak memory": format_bytes(results.peak_memory_bytes) if results.peak_memory_bytes else "unknown",
    }


def series(rows: Sequence[dict[str, Any]], key: str, title: str) -> Series:
    """A figure over the steps where it was logged."""
    found = [row for row in rows if row.get(key) is not None]
    return Series(title, [row["step"] for row in found], [row[key] for row in found])


def loop_curves(rows: Sequence[dict[str, Any]]) -> list[Figure]:
    """Throughput, gradient norm and learning rate."""
    curves = (
        ("tokens_per_second", "tokens a second", "Throughput of the logged steps."),
        ("gradient_norm", "gradient norm", "Norm of the gradient before clipping."),
        ("learning_rate", "learning rate", "Learning rate."),
    )
    return [
        Figure(line_chart([series(rows, key, title)], "step", title), caption, caption)
        for key, title, caption in curves
    ]


def routing_curves(rows: Sequence[dict[str, Any]]) -> list[Figure]:
    """How experts were used, and the losses of routers; nothing for a model without them."""
    if not any("routing/max_load" in row for row in rows):
        return []
    loads = [series(rows, "routing/max_load", "highest"), series(rows, "routing/min_load", "lowest")]
    curves = [
        Figure(
            line_chart(loads, "step", "load over the mean"),
            "Highest and lowest load of an expert, of the most uneven layer.",
            "Loads",
        )
    ]
    for key, title, caption in (
        (
            "load_balancing_loss",
            "load-balancing loss",
            "Load-balancing loss, without its coefficient; 1 where loads are equal.",
        ),
        ("router_z_loss", "router z-loss", "Router z-loss, without its coefficient."),
        (
            "routing_saturation",
            "saturation",
            "Share of each held-out token's experts that were chosen at the evaluation before.",
        ),
    ):
        curve = series(rows, key, title)
        if curve.x:
            curves.append(Figure(line_chart([curve], "step", title), caption, title))
    return curves
