"""Cartridges (Eyuboglu et al. 2025): a few rows of keys and values, trained for one corpus.

They begin as the keys and values of the corpus' first p tokens, of which the first row stays as it is, and learn to
make the model say what it says with the corpus before it: cross-entropy to its likeliest tokens, on texts that it
writes with the corpus before it (self-study, section 4). Excerpts of the corpus itself teach rows to recite it: on
other sentences they soon are worse than no training. Next-token loss alone does not do.

Shapes: L layers, K key-value heads, P rows, H width of a head, B excerpts, C tokens of an excerpt, n likeliest tokens,
S texts that the model writes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lmlab.data import Batch, Loader
from lmlab.errors import UserError
from lmlab.methods.autocompressor.kinds.base import Compressor, register, slots_for
from lmlab.methods.autocompressor.kinds.config import CartridgeConfig
from lmlab.models import Completion, GenerationConfig, KVRows, Memory, Transformer, generate, read_rows
from lmlab.train import StepOutput, Trainer, TrainerConfig

_TOGETHER = 32  # texts that are written at once: more hold more copies of the corpus' keys and values


class Cartridge(nn.Module):
    """The rows under training, before a frozen model.

    Arguments:
        model: it is frozen, and left in evaluation mode.
        ids_T: the corpus.
        rows: P.
        frozen: first rows that do not learn.
    """

    def __init__(self, model: Transformer, ids_T: Tensor, rows: int, frozen: int = 1) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.frozen = min(frozen, rows)
        with torch.no_grad():
            first = read_rows(model, ids_T[None, :rows])
        self.positions_LBKM, self.next_position_B = first.positions_LBKM, first.next_position_B
        keys, values = (x.clone() for x in (first.keys_LBKMH, first.values_LBKMH))
        self.register_buffer("fixed_keys", keys[:, :, :, : self.frozen].clone())
        self.register_buffer("fixed_values", values[:, :, :, : self.frozen].clone())
        self.keys, self.values = (nn.Parameter(x[:, :, :, self.frozen :].float().clone()) for x in (keys, values))

    def train(self, mode: bool = True) -> Cartridge:
        """Only the rows are trained: the model stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    @property
    def rows(self) -> KVRows:
        """The rows as a value; gradients flow through it. What follows goes on behind them."""
        fixed_keys, fixed_values = self.fixed_keys, self.fixed_values
        assert isinstance(fixed_keys, Tensor) and isinstance(fixed_values, Tensor)
        return KVRows(
            torch.cat((fixed_keys, self.keys.to(fixed_keys.dtype)), 3),
            torch.cat((fixed_values, self.values.to(fixed_values.dtype)), 3),
            self.positions_LBKM,
            self.next_position_B,
        )

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """`Transformer.forward`, behind the rows."""
        return self.model(*arguments, memory=Memory(self.rows), **named)


class Lessons(ABC):
    """Texts with what the model, with all of the corpus before it, finds likeliest after each token.

    Arguments:
        ids_T: the corpus.
        config: how long texts are, and how many lessons there are; each depends on the seed and its number alone.
    """

    def __init__(self, model: Transformer, ids_T: Tensor, config: CartridgeConfig) -> None:
        self._model, self._ids, self._config = model, ids_T.cpu(), config
        with torch.no_grad():
            self._whole = Memory(read_rows(model, ids_T[None]))

    def __len__(self) -> int:
        return self._config.steps * self._config.batch_size

    @abstractmethod
    def text(self, index: int) -> Tensor:
        """The ids of a lesson, [C]."""

    def _seed(self, index: int) -> int:
        """Of what is drawn for a lesson."""
        return self._config.seed * 1_000_003 + index

    @torch.no_grad()
    def __getitem__(self, index: int) -> dict[str, Any]:
        ids, model = self.text(index), self._model
        hidden = model(ids[None].to(model.embedding.weight.device), memory=self._whole, logits="none").hidden_BTD[0]
        top = min(self._config.top, model.config.vocab_size)
        found = model.logits_of(hidden).float().log_softmax(-1).topk(top)
        return {
            "input_ids": ids.numpy(),
            "top_ids": found.indices.cpu().numpy(),
            "top_log_probs": found.values.cpu().numpy(),
        }


class Excerpts(Lessons):
    """Excerpts of the corpus, drawn anew for each lesson."""

    def text(self, index: int) -> Tensor:
        length = min(self._config.excerpt, len(self._ids))
        generator = torch.Generator().manual_seed(self._seed(index))
        start = int(torch.randint(0, len(self._ids) - length + 1, (1,), generator=generator))
        return self._ids[start : start + length]


class Studies(Lessons):
    """Texts that the model writes with the corpus before it, each from a token of the corpus; lessons go through them
    again and again.
    """

    @cached_property
    def _texts_SC(self) -> Tensor:
        # written when the first lesson is asked for: a training that is at its end asks for none
        config, count = self._config, min(self._config.samples, len(self))
        generator = torch.Generator().manual_seed(config.seed)
        first = self._ids[torch.randint(0, len(self._ids), (count,), generator=generator)].tolist()
        # a draw depends on seed and prompt: of two texts from the same token each has a seed of its own
        how = [GenerationConfig(max_new_tokens=config.excerpt - 1, seed=self._seed(number)) for number in range(count)]
        written: list[list[Completion]] = []
        for start in range(0, count, _TOGETHER):
            part = slice(start, start + _TOGETHER)
            written += generate(self._model, [[token] for token in first[part]], how[part], memory=self._whole)
        return torch.tensor([[token, *one.ids] for token, (one,) in zip(first, written, strict=True)])

    def text(self, index: int) -> Tensor:
        return self._texts_SC[index % len(self._texts_SC)]


def distillation_step(cartridge: Cartridge, batch: Batch) -> StepOutput:
    """Cross-entropy from the teacher's likeliest tokens, summed over places; what is less likely is left out."""
    hidden_BCD = cartridge(batch["input_ids"], logits="none").hidden_BTD
    log_probs = cartridge.model.logits_of(hidden_BCD).float().log_softmax(-1).gather(-1, batch["top_ids"])
    loss = -(batch["top_log_probs"].exp() * log_probs).sum()
    return StepOutput(loss, torch.tensor(batch["input_ids"].numel(), device=loss.device))


def train_cartridge(model: Transformer, ids_T: Tensor, config: CartridgeConfig, directory: str | Path) -> Memory:
    """A cartridge for a corpus, by the one training loop: a directory with checkpoints goes on where they stand.

    Raises:
        UserError: a corpus that is shorter than the cartridge, or does not fit the window together with an excerpt.
    """
    length, window = len(ids_T), model.config.max_seq_len
    rows = config.rows or slots_for(length, config.ratio)
    if rows > length:
        raise UserError(f"A cartridge of {rows} rows cannot begin as the first tokens of a text of {length}.")
    lesson = config.excerpt if config.learn_from == "studies" else min(config.excerpt, length)
    if config.steps and length + lesson > window:
        raise UserError(
            f"A text of {length} tokens and a lesson of {lesson} exceed the model's window of {window}.",
            "Give a shorter text, or a smaller excerpt.",
        )
    learns = {name: each.requires_grad for name, each in model.named_parameters()}
    cartridge = Cartridge(model, ids_T, rows, config.frozen)
    if config.steps and rows > cartridge.frozen:
        lessons = (Studies if config.learn_from == "studies" else Excerpts)(model, ids_T, config)
        trainer_config = TrainerConfig.model_validate(
            {
                "steps": config.steps,
                "batch_size": config.batch_size,
                "optimizer": {"learning_rate": config.learning_rate, "weight_decay": 0.0},
                "schedule": {"kind": "cosine", "warmup_fraction": 0.05},
                "precision": "fp32",
                "device": str(model.embedding.weight.device.type),
                "checkpoint_every": max(1, config.steps // 4),
                "log_every": max(1, config.steps // 20),
            }
        )
        loader = Loader(lessons, config.batch_size, config.seed, shuffle=False)
        Trainer(cartridge, distillation_step, loader, trainer_config, directory).fit()
    for name, each in model.named_parameters():
        each.requires_grad_(learns[name])
    found = cartridge.rows
    return Memory(
        KVRows(found.keys_LBKMH.detach(), found.values_LBKMH.detach(), found.positions_LBKM, found.next_position_B)
    )


@register("cartridge")
class CartridgeKind(Compressor):
    """Rows that are trained for each text. In a table they cost minutes a text, and nothing when they are read."""

    trains_each: ClassVar[bool] = True
    Config = CartridgeConfig

    def memory(self, ids_1T: Tensor, query_1Q: Tensor | None, ratio: float) -> Memory:
        import tempfile

        assert isinstance(self.config, CartridgeConfig)
        config = self.config.model_copy(update={"ratio": ratio})
        with tempfile.TemporaryDirectory() as temporary, torch.enable_grad():
            return train_cartridge(self.model, ids_1T[0], config, temporary)
