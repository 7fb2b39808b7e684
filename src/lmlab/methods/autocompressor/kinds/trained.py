"""Kinds that learn: a text becomes a memory with gradients, and the loss is what the model makes of it.

Shapes: B texts, T tokens of a text, C tokens of what follows it, D model width, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from lmlab.data import Batch, Loader, Tokenizer
from lmlab.methods.autocompressor.compressor.starting import scale_to_embeddings
from lmlab.methods.autocompressor.kinds.base import Compressor
from lmlab.methods.autocompressor.kinds.config import KindConfig
from lmlab.models import IGNORE, LoRAConfig, Memory, Piece, Transformer, add_lora
from lmlab.train import StepOutput, Trainer, TrainerConfig


class TrainedConfig(KindConfig):
    """How much is kept, what learns, and what is learned.

    Attributes:
        train: all weights, adapters (`lora`) and new weights, or the new weights alone (`new`).
        lora_rank: of the adapters.
        continuation: weight of the negative log-likelihood of what follows the text.
        autoencode: weight of that of the text itself, read back from the memory.
        distill: weight of the divergence from the untrained model that reads the text as it is (KL, per token of what
            follows).
    """

    train: Literal["all", "lora", "new"] = "all"
    lora_rank: PositiveInt = 16
    continuation: NonNegativeFloat = 1.0
    autoencode: NonNegativeFloat = 0.0
    distill: NonNegativeFloat = 0.0
    init_std: float = Field(default=0.02, gt=0)


class VectorsConfig(TrainedConfig):
    """How much is kept, what learns, and what is learned.

    Attributes:
        vector_scale: by what final hidden states are multiplied to become vectors. Where a model's final states are
            much longer than its embeddings (SmolLM2: 15 times), vectors begin as inputs unlike any that it knows.
            `embedding` stands for the factor that makes them as long as its embeddings; what is saved is the number.
    """

    vector_scale: PositiveFloat | Literal["embedding"] = 1.0


class Trained(Compressor):
    """A kind that learns.

    Attributes:
        again: the vector that asks for the text itself, in auto-encoding.
    """

    learns: ClassVar[bool] = True
    Config = TrainedConfig

    def __init__(self, model: Transformer, config: KindConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(model, config, tokenizer)
        assert isinstance(config, TrainedConfig)
        self.settings = config
        teacher = copy.deepcopy(model).eval().requires_grad_(False) if config.distill else None
        self._teacher = [teacher]  # in a list, so that it is no part of what is trained and stored
        if config.train == "lora":
            add_lora(model, LoRAConfig(rank=config.lora_rank, alpha=float(config.lora_rank)), config.seed)
        elif config.train == "new":
            model.requires_grad_(False)
        self.again_D = self.fresh(model.config.d_model) if config.autoencode else None

    def change(self, **settings: Any) -> None:
        """Let the settings, which are saved, hold other values: what was done, or the number that a word stood for."""
        self.settings = self.config = self.settings.model_copy(update=settings)

    def fresh(self, *shape: int, std: float | None = None) -> nn.Parameter:
        """A new weight, drawn from the seed, in fp32 at least."""
        generator = torch.Generator().manual_seed(self.config.seed + sum(shape))
        drawn = torch.randn(shape, generator=generator) * (self.settings.init_std if std is None else std)
        return nn.Parameter(drawn.to(self.model.embedding.weight.device))

    def encode(self, ids_BT: Tensor, ratio: float) -> Memory:
        """Memories of texts of one length, with gradients."""
        raise NotImplementedError

    def memory(self, ids_1T: Tensor, query_1Q: Tensor | None, ratio: float) -> Memory:
        return self.encode(ids_1T, ratio)

    def read_both_ways(self, **named: Any) -> dict[str, Any]:
        """What `Transformer.forward` takes so that all tokens of a text see each other."""
        first: Tensor = next(each for each in named.values() if each is not None)
        rows, length = first.shape[:2]
        return named | {
            "visible_BTS": first.new_ones(rows, length, length, dtype=torch.bool),
            "position_ids_BT": torch.arange(length, device=first.device).expand(rows, -1),
        }

    def losses(self, context_BT: Tensor, ids_BC: Tensor, labels_BC: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The summed loss over the labels of what follows, their number, and its parts."""
        config = self.settings
        memory = self.encode(context_BT, self.config.ratio)
        distills = config.distill and self._teacher[0] is not None
        out = self.model(ids_BC, memory=memory, labels_BT=labels_BC, logits="all" if distills else "none")
        assert out.loss is not None
        parts: dict[str, Tensor] = {"continuation": out.loss.sum}
        total = config.continuation * out.loss.sum
        if distills:
            divergence = self._divergence(context_BT, ids_BC, labels_BC, out.logits_BTV)
            parts["distill"] = divergence
            total = total + config.distill * divergence
        if config.autoencode:
            assert self.again_D is not None
            x_BTD = self.model.embed(context_BT[:, :-1])
            ask = self.again_D.to(x_BTD.dtype).expand(len(x_BTD), 1, -1)
            again = self.model(inputs_embeds_BTD=torch.cat((ask, x_BTD), 1), memory=memory, labels_BT=context_BT)
            # as the mean over its own tokens, on the scale of the sum over labels
            parts["autoencode"] = again.loss.mean * out.loss.count
            total = total + config.autoencode * parts["autoencode"]
        return total, out.loss.count, parts

    def _divergence(self, context_BT: Tensor, ids_BC: Tensor, labels_BC: Tensor, logits_BCV: Tensor) -> Tensor:
        teacher = self._teacher[0]
        assert teacher is not None
        with torch.no_grad():
            whole = teacher(torch.cat((context_BT, ids_BC), 1), logits="none").hidden_BTD
            wanted = teacher.logits_of(whole[:, context_BT.shape[1] :]).float().log_softmax(-1)
        found = logits_BCV.float().log_softmax(-1)
        by_token = (wanted.exp() * (wanted - found)).sum(-1)
        return by_token.masked_fill(labels_BC == IGNORE, 0).sum()

    def fit(self, *arguments: Any, **named: Any) -> Trained:
        """As `fit_on`."""
        return self.fit_on(*arguments, **named)

    def fit_on(
        self,
        rows: Any,
        config: TrainerConfig,
        directory: str | Path,
        evaluate: Callable[[Any], dict[str, float]] | None = None,
    ) -> Trained:
        """Train with the one loop of lmlab; a directory with checkpoints goes on where they stand.

        Arguments:
            rows: each with `context` [T], `input_ids` [C] and `labels` [C], already shifted.
        """
        loader = Loader(rows, config.batch_size, self.config.seed)
        Trainer(self, compression_step, loader, config, directory, evaluate).fit()
        return self


class TrainedVectors(Trained):
    """A kind whose memory is made of final hidden states."""

    Config = VectorsConfig

    def __init__(self, model: Transformer, config: KindConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(model, config, tokenizer)
        assert isinstance(config, VectorsConfig)
        if config.vector_scale == "embedding":
            self.change(vector_scale=scale_to_embeddings(model))

    def vectors(self, hidden_BMD: Tensor) -> Memory:
        """The memory of these states."""
        scale = cast(VectorsConfig, self.settings).vector_scale
        assert scale != "embedding"
        return Memory(pieces=(Piece(hidden_BMD * scale),))


def compression_step(compressor: Trained, batch: Batch) -> StepOutput:
    """The step function of all kinds that learn."""
    total, count, parts = compressor.losses(batch["context"], batch["input_ids"], batch["labels"])
    return StepOutput(total, count, {f"loss/{name}": (value.detach(), count) for name, value in parts.items()})


def groups_of(length: int, ratio: float, device: torch.device) -> Tensor:
    """Which slot each token belongs to, [T]: runs of `ratio` consecutive tokens, of which the last may be shorter; as
    many runs as `slots_for` says, also where the ratio is no whole number.
    """
    ends_T = torch.arange(1, length + 1, dtype=torch.float64) / ratio
    # rounding must not put the last token of a run into the next one
    return ((ends_T - 1e-9).ceil().long() - 1).clamp(min=0).to(device)
