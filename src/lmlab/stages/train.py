"""The stage `train`: a language model on packed rows of a tokenised corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator

from lmlab.config import Config
from lmlab.data import Loader, PackedRows, TokenizedCorpus, Tokenizer
from lmlab.distributed import world
from lmlab.errors import UserError
from lmlab.files import write_json
from lmlab.hardware import gemm_flops, select_device, select_dtype
from lmlab.models import ModelConfig, Transformer, save_pretrained
from lmlab.progress import duration, short
from lmlab.reports import Facts, Figure, Section, Series, format_bytes, format_duration, line_chart
from lmlab.runs import Input, Stage, StageContext
from lmlab.stages.start import Start
from lmlab.train import (
    Evaluation,
    Trainer,
    TrainerConfig,
    estimate,
    language_model_step_by_domain,
    load_weights,
    read_metrics,
    whole_tensors,
)

_TYPICAL_UTILISATION = 0.35
_TYPICAL_BANDWIDTH = 50 * 10**9  # bytes a second of a GPU's network port of 400 Gbit/s


class TrainConfig(Config):
    """The model, its data, and the loop.

    Attributes:
        tokens: tokenised training text.
        heldout_tokens: tokenised held-out text, whose loss is logged every `trainer.evaluate_every` steps on `heldout_rows` rows spread over it.
        model: the network; without it, that of `start`.
        start: where the weights come from in place of chance: an earlier stage `train`, one of its checkpoints, or a model's directory.
        start_optimizer: take the optimizer's state from there too; steps and schedule begin anew.
        z_loss: coefficient of the z-loss.
    """

    tokens: Input
    tokenizer: Input
    heldout_tokens: Input | None = None
    heldout_rows: PositiveInt = 64
    model: ModelConfig | None = None
    start: Input | None = None
    start_optimizer: bool = False
    seq_len: PositiveInt
    z_loss: float = Field(default=0.0, ge=0)
    trainer: TrainerConfig

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.model is None and self.start is None:
            raise ValueError("the key 'model' is required where there is no 'start'.")
        if self.model is not None and self.seq_len > self.model.max_seq_len:
            raise ValueError(f"seq_len {self.seq_len} is longer than the model's max_seq_len {self.model.max_seq_len}.")
        if self.start_optimizer and self.start is None:
            raise ValueError("start_optimizer needs 'start'.")
        return self

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole training."""
        return self.trainer.num_steps(self.seq_len) * self.trainer.batch_size * self.seq_len


class Train(Stage[TrainConfig]):
    """Writes metrics.jsonl, checkpoints/ and the trained model as model/."""

    config_type: ClassVar[type[Config]] = TrainConfig
    distributed: ClassVar[bool] = True

    def plan(self, config: TrainConfig) -> dict[str, str]:
        """Parameters, arithmetic, memory, communication and time."""
        rows = {"tokens": f"{config.num_tokens:,} in {config.trainer.num_steps(config.seq_len):,} steps"}
        return rows if config.model is None else rows | _plan(config.model, config)

    def run(self, config: TrainConfig, context: StageContext) -> dict[str, Any]:
        """Train from the newest checkpoint, or from the start."""
        tokenizer = Tokenizer.load(context.inputs["tokenizer"])
        corpus = _corpus(context.inputs["tokens"], tokenizer)
        start = Start.find(context.inputs["start"]) if config.start else None
        model_config = config.model or cast(Start, start).model
        if tokenizer.vocab_size > model_config.vocab_size:
            raise UserError(f"model.vocab_size {model_config.vocab_size} is smaller than the tokenizer's {tokenizer.vocab_size}.", "Raise it.")
        if config.seq_len > model_config.max_seq_len:
            raise UserError(f"seq_len {config.seq_len} is longer than the model's max_seq_len {model_config.max_seq_len}.", "Lower it.")
        if config.start_optimizer and cast(Start, start).checkpoint is None:
            raise UserError(f"start_optimizer: '{cast(Start, start).directory}' holds weights, but no optimizer's state.", "Name a stage 'train'.")
        place = world()
        loader = Loader(PackedRows(corpus, config.seq_len), config.trainer.batch_size, context.seed, place.rank, place.size)
        trainer = Trainer(
            _network(model_config, start, context.seed),
            language_model_step_by_domain(corpus.domains, config.z_loss),
            loader,
            config.trainer,
            context.directory,
            _heldout_loss(context.inputs["heldout_tokens"], config) if config.heldout_tokens else None,
            model_config.flops_per_token(config.seq_len),
            tokens_per_row=config.seq_len,
            materialize=lambda model: model.initialize(context.seed),
            start=start.checkpoint if start else None,
            start_optimizer=config.start_optimizer,
        )
        if place.is_main:
            tokenizer.save(context.directory / "model", model_config.max_seq_len)
            write_json(context.directory / "checkpoints" / "model.json", model_config.model_dump(mode="json"))
        summary = trainer.fit()
        _export(trainer.model, model_config, tokenizer, context.directory / "model")
        return {**summary, "parameters": model_config.num_parameters(), "final_loss": _final_loss(context.directory)}

    def summary(self, results: dict[str, Any]) -> str:
        """Loss and speed."""
        return f"loss {results['final_loss']:.3f}, {results['tokens_per_second']:,.0f} tokens/s, {_share(results)} of this machine's GEMM peak."

    def headline(self, results: dict[str, Any]) -> dict[str, str]:
        """Size, tokens, speed."""
        return {
            "Parameters": short(results["parameters"]),
            "Training tokens": short(results["tokens"]),
            "Tokens a second": f"{results['tokens_per_second']:,.0f}",
            "Of GEMM peak": _share(results),
        }

    def report(self, config: TrainConfig, results: dict[str, Any], directory: Path) -> list[Section]:
        """Curves of loss, throughput, gradient norm and learning rate."""
        rows = read_metrics(directory / "metrics.jsonl")
        steps = [row["step"] for row in rows]
        facts = {
            "Final loss": f"{results['final_loss']:.3f} nats",
            "Training time": format_duration(results["seconds"]),
            "Epochs": f"{results['epochs']:.2f}",
            "Device": f"{results['device']}, {results['precision']}",
            "GEMM peak": f"{short(results['gemm_peak_flops'])}FLOP/s",
            "Peak memory": format_bytes(results["peak_memory_bytes"]) if results["peak_memory_bytes"] else "unknown",
        }

        losses = [Series("training", steps, [row["loss"] for row in rows])]
        heldout = [row for row in rows if "heldout_loss" in row]
        if heldout:
            losses.append(Series("held out", [row["step"] for row in heldout], [row["heldout_loss"] for row in heldout]))

        def curve(key: str, title: str, caption: str) -> Figure:
            return Figure(line_chart([Series(title, steps, [row[key] for row in rows])], "step", title), caption, caption)

        return [
            Section(
                "Training",
                [
                    Facts(facts),
                    Figure(line_chart(losses, "step", "loss (nats a token)"), "Loss of the logged steps.", "Loss curve"),
                    curve("tokens_per_second", "tokens a second", "Throughput of the logged steps."),
                    curve("gradient_norm", "gradient norm", "Norm of the gradient before clipping."),
                    curve("learning_rate", "learning rate", "Learning rate."),
                ],
            )
        ]


def _plan(model: ModelConfig, config: TrainConfig) -> dict[str, str]:
    trainer, place = config.trainer, world()
    device = select_device(trainer.device)
    dtype = select_dtype(trainer.precision, device)
    needs = estimate(model, config.seq_len, trainer, place, dtype)
    peak = gemm_flops(str(device), dtype)
    seconds = needs.flops * trainer.num_steps(config.seq_len) / peak / _TYPICAL_UTILISATION
    parts = [(needs.weights, "weights"), (needs.gradients, "gradients"), (needs.optimizer, "optimizer"), (needs.activations, "activations")]
    if needs.gathered:
        parts.append((needs.gathered, "gathered weights"))
    rows = {
        "parameters": f"{model.num_parameters():,} ({model.num_parameters(embedding=False):,} without embeddings)",
        "arithmetic": f"{short(needs.flops)}FLOP a step" + (" and process" if place.size > 1 else ""),
        "memory": f"about {format_bytes(needs.memory)}: " + ", ".join(f"{format_bytes(size)} {name}" for size, name in parts),
        "time": f"about {duration(seconds)} on {device} at {_TYPICAL_UTILISATION:.0%} of its {short(peak)}FLOP/s",
    }
    if place.size > 1:
        replicas, shards = trainer.parallel.layout(place)
        where = "between machines" if needs.between_machines else "within the machine"
        rows["processes"] = f"{place.size} on {place.nodes} machines: {replicas} x {shards} (copies x shares, {trainer.parallel.kind})"
        rows["communication"] = (
            f"{format_bytes(needs.traffic)} a step and process, {where}: {format_bytes(needs.gather_bytes)} to gather weights, "
            f"{format_bytes(needs.reduce_bytes)} to sum gradients; {duration(needs.traffic / _TYPICAL_BANDWIDTH)} at "
            f"{format_bytes(_TYPICAL_BANDWIDTH)}/s, against {duration(needs.flops / peak / _TYPICAL_UTILISATION)} of arithmetic"
        )
    return rows


def _corpus(directory: Path, tokenizer: Tokenizer) -> TokenizedCorpus:
    corpus = TokenizedCorpus(directory, verify=world().is_main)
    if corpus.tokenizer_fingerprint != tokenizer.fingerprint:
        raise UserError(f"The corpus '{corpus.directory}' was made with another tokenizer.", "Tokenise it again with this one.")
    return corpus


def _network(config: ModelConfig, start: Start | None, seed: int) -> Transformer:
    """The network with its weights; on the meta device, to be filled later, where many processes each hold a share."""
    if start is not None and start.checkpoint is None:
        return start.load(config)
    if world().size == 1:
        return Transformer(config).initialize(seed)
    with torch.device("meta"):
        return Transformer(config)


def _export(model: torch.nn.Module, config: ModelConfig, tokenizer: Tokenizer, directory: Path) -> None:
    """Write the trained model as one process sees it."""
    whole = whole_tensors(model)
    if world().is_main:
        with torch.device("meta"):
            copy = Transformer(config)
        copy = copy.to_empty(device="cpu")
        load_weights(copy, whole, str(directory))
        save_pretrained(copy, directory, tokens={"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id})


def _heldout_loss(directory: Path, config: TrainConfig) -> Evaluation:
    corpus = TokenizedCorpus(directory)
    rows = PackedRows(corpus, config.seq_len)
    count = min(config.heldout_rows, len(rows))
    chosen = [rows[number * len(rows) // count] for number in range(count)]
    batch = {key: torch.from_numpy(np.stack([row[key] for row in chosen])) for key in chosen[0]}
    step = language_model_step_by_domain(corpus.domains)

    def evaluate(model: Transformer) -> dict[str, float]:
        device = model.embedding.weight.device
        parts = [batch[key].split(config.trainer.rows_at_once) for key in batch]
        outputs = [step(model, dict(zip(batch, [part.to(device) for part in each], strict=True))) for each in zip(*parts, strict=True)]
        figures = {"heldout_loss": float(sum(output.loss_sum for output in outputs)) / float(sum(output.count for output in outputs))}
        for name in outputs[0].sums:
            total, number = (float(sum(output.sums[name][place] for output in outputs)) for place in (0, 1))
            if number:
                figures[f"heldout_{name}"] = total / number
        return figures

    return evaluate


def _final_loss(directory: Path) -> float:
    losses = [row["loss"] for row in read_metrics(directory / "metrics.jsonl")][-10:]
    return sum(losses) / len(losses)


def _share(results: dict[str, Any]) -> str:
    return f"{results['utilisation']:.0%}" if results["utilisation"] else "unknown"
