"""The stage `train`: a language model on packed rows of a tokenised corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import PositiveInt, model_validator

from lmlab.config import Config
from lmlab.data import Loader, PackedRows, TokenizedCorpus, Tokenizer
from lmlab.errors import UserError
from lmlab.hardware import gemm_flops, select_device, select_dtype
from lmlab.models import ModelConfig, Transformer, save_pretrained
from lmlab.progress import duration, short
from lmlab.reports import Facts, Figure, Section, Series, format_bytes, format_duration, line_chart
from lmlab.runs import Input, Stage, StageContext
from lmlab.train import Evaluation, Trainer, TrainerConfig, language_model_step, read_metrics

_TYPICAL_UTILISATION = 0.35


class TrainConfig(Config):
    """The model, its data, and the loop.

    Attributes:
        tokens: tokenised training text.
        heldout_tokens: tokenised held-out text, whose loss is logged every `trainer.evaluate_every` steps on `heldout_rows` rows spread over it.
    """

    tokens: Input
    tokenizer: Input
    heldout_tokens: Input | None = None
    heldout_rows: PositiveInt = 64
    model: ModelConfig
    seq_len: PositiveInt
    trainer: TrainerConfig

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.seq_len > self.model.max_seq_len:
            raise ValueError(f"seq_len {self.seq_len} is longer than the model's max_seq_len {self.model.max_seq_len}.")
        return self

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole training."""
        return self.trainer.steps * self.trainer.batch_size * self.seq_len


class Train(Stage[TrainConfig]):
    """Writes metrics.jsonl, checkpoints/ and the trained model as model/."""

    config_type: ClassVar[type[Config]] = TrainConfig

    def plan(self, config: TrainConfig) -> dict[str, str]:
        """Parameters, arithmetic, memory and time."""
        device = select_device(config.trainer.device)
        dtype = select_dtype(config.trainer.precision, device)
        flops = config.model.flops_per_token(config.seq_len) * config.num_tokens
        peak = gemm_flops(str(device), dtype)
        return {
            "parameters": f"{config.model.num_parameters():,} ({config.model.num_parameters(embedding=False):,} without embeddings)",
            "tokens": f"{config.num_tokens:,} in {config.trainer.steps:,} steps",
            "arithmetic": f"{short(flops)}FLOP ({flops:.2e})",
            "memory": f"about {format_bytes(_memory_estimate(config))}",
            "time": f"about {duration(flops / peak / _TYPICAL_UTILISATION)} on {device} at {_TYPICAL_UTILISATION:.0%} of its {short(peak)}FLOP/s",
        }

    def run(self, config: TrainConfig, context: StageContext) -> dict[str, Any]:
        """Train from the newest checkpoint, or from the start."""
        tokenizer = Tokenizer.load(context.inputs["tokenizer"])
        corpus = TokenizedCorpus(context.inputs["tokens"], verify=True)
        if corpus.tokenizer_fingerprint != tokenizer.fingerprint:
            raise UserError(f"The corpus '{corpus.directory}' was made with another tokenizer.", "Tokenise it again with this one.")
        if tokenizer.vocab_size > config.model.vocab_size:
            raise UserError(f"model.vocab_size {config.model.vocab_size} is smaller than the tokenizer's {tokenizer.vocab_size}.", "Raise it.")
        model = Transformer(config.model).initialize(context.seed)
        loader = Loader(PackedRows(corpus, config.seq_len), config.trainer.batch_size, context.seed)
        flops = config.model.flops_per_token(config.seq_len)
        evaluate = _heldout_loss(context.inputs["heldout_tokens"], config) if config.heldout_tokens else None
        trainer = Trainer(model, language_model_step, loader, config.trainer, context.directory, evaluate, flops)
        summary = trainer.fit()
        save_pretrained(model, context.directory / "model", tokens={"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id})
        tokenizer.save(context.directory / "model", config.model.max_seq_len)
        return {**summary, "parameters": config.model.num_parameters(), "final_loss": _final_loss(context.directory)}

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


def _heldout_loss(directory: Path, config: TrainConfig) -> Evaluation:
    rows = PackedRows(TokenizedCorpus(directory), config.seq_len)
    count = min(config.heldout_rows, len(rows))
    chosen = [rows[number * len(rows) // count] for number in range(count)]
    batch = {key: torch.from_numpy(np.stack([row[key] for row in chosen])) for key in chosen[0]}

    def evaluate(model: Transformer) -> dict[str, float]:
        device = model.embedding.weight.device
        parts = [batch[key].split(config.trainer.rows_at_once) for key in batch]
        outputs = [language_model_step(model, dict(zip(batch, [part.to(device) for part in each], strict=True))) for each in zip(*parts, strict=True)]
        return {"heldout_loss": float(sum(output.loss_sum for output in outputs)) / float(sum(output.count for output in outputs))}

    return evaluate


def _memory_estimate(config: TrainConfig) -> int:
    """Weights, gradients and two moments in fp32, and what the blocks keep for the backward pass in two bytes."""
    model = config.model
    width = 8 * model.d_model + 2 * (model.num_heads + model.num_kv_heads) * model.head_dim + 4 * model.d_ff
    return 16 * model.num_parameters() + 2 * config.trainer.rows_at_once * config.seq_len * model.num_layers * width


def _final_loss(directory: Path) -> float:
    losses = [row["loss"] for row in read_metrics(directory / "metrics.jsonl")][-10:]
    return sum(losses) / len(losses)


def _share(results: dict[str, Any]) -> str:
    return f"{results['utilisation']:.0%}" if results["utilisation"] else "unknown"
