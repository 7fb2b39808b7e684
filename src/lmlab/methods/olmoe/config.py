"""Settings of the method: upcycling, what is measured of routers, and comparisons of design choices."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PositiveInt, model_validator

from lmlab.config import NO_INFLUENCE, Config, Flag, validate
from lmlab.data.sources.reading.fields import SplitOption, TextFields
from lmlab.distributed import Backend
from lmlab.errors import did_you_mean
from lmlab.models import ModelConfig
from lmlab.runs import Input, ModelInput, TokensInput
from lmlab.train import TrainerConfig


class TraceConfig(TextFields, SplitOption):
    """On which sequences of which texts routers are traced.

    Attributes:
        tokenizer: directory of a tokenizer, by default the model's; `bytes` for a model of raw bytes.
        length: tokens of a sequence; texts of a domain are joined and cut, the rest is dropped.
        sequences: most sequences of a domain.
        layers: only this layer; may be repeated.
        batch_size: sequences at once.
    """

    tokenizer: str | None = None
    length: int = Field(default=2048, ge=2)
    sequences: int = Field(default=102, ge=1)
    layers: Annotated[tuple[int, ...], Flag(("--layer",))] = ()
    batch_size: int = Field(default=4, ge=1)


class UpcycleConfig(Config):
    """How experts are made of a dense feed-forward network.

    Attributes:
        num_experts: experts of each layer.
        top_k: experts for each token.
        noise: share of the entries of each expert that are replaced by draws from N(0, 0.02), so that experts differ.
        preserve_function: divide the chosen probabilities by their sum, so that the model computes what the dense one
            did. Without, as in the paper, the output of a block is smaller by the sum of the chosen probabilities
            (about 0.54 for 2 of 8).
        split: cut the inner units of the dense network into so many slices, each of which makes E / split experts,
            scaled so that their sum is kept. The slices of one copy share their router's first row, so that they are
            chosen together; top_k must be a multiple of split.
        seed: of the router and the noise.
    """

    num_experts: int = Field(ge=2)
    top_k: PositiveInt
    noise: float = Field(default=0.0, ge=0, le=1)
    preserve_function: bool = True
    split: PositiveInt = 1
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> UpcycleConfig:
        if self.num_experts % self.split or self.top_k % self.split:
            raise ValueError(
                f"num_experts {self.num_experts} and top_k {self.top_k} must be multiples of split {self.split}."
            )
        if self.preserve_function and self.top_k == 1:
            raise ValueError(
                "preserve_function with top_k 1 makes every weight 1, so the router would learn nothing; raise top_k."
            )
        return self


class UpcycleStageConfig(UpcycleConfig):
    """A dense model, and how experts are made of it.

    Attributes:
        model: a stage `train`, a checkpoint, or a model's directory.
    """

    model: ModelInput


class Earlier(Config):
    """An earlier checkpoint of a model."""

    model: ModelInput


class RoutingConfig(Config):
    """Which model, on which tokens.

    Attributes:
        model: a stage `train`, a checkpoint, or a model's directory.
        tokens: tokenized text.
        earlier: earlier checkpoints of the model by name, for saturation.
        seq_len: tokens of a sequence.
        sequences: most sequences, spread evenly over the text.
    """

    model: ModelInput
    tokens: TokensInput
    earlier: dict[str, Earlier] = Field(default={})
    seq_len: PositiveInt = 256
    sequences: PositiveInt = 256
    batch_size: PositiveInt = 8


class ByteTrainingConfig(Config):
    """A model of raw bytes, and the texts that it learns from.

    Attributes:
        texts: folder of JSON lines with `text` and `domain`.
        seq_len: bytes of a row; rows are drawn evenly from domains by the recipe's seed.
    """

    texts: Input
    model: ModelConfig
    seq_len: PositiveInt = 256
    trainer: TrainerConfig


class Choice(Config):
    """A comparison of two or more variants: one line of the table for each, against the first.

    Attributes:
        title: the question.
        variants: names of variants, the one to compare with first.
    """

    title: str
    variants: tuple[str, ...] = Field(min_length=2)


class AblationConfig(Config):
    """Which models are trained, how, and what is compared.

    Attributes:
        texts: folder of JSON lines with `text` and `domain`.
        model: what all variants share; a variant's own keys replace these, those of its section `moe` one by one.
        variants: name -> what it changes of `model`; a key set to null is removed.
        optimizer: name -> what a variant changes of `trainer.optimizer`.
        choices: what is compared.
        seeds: each variant is trained with each, of its weights and its data; variants share both.
        seq_len: bytes of a row.
        only: only this variant; may be repeated.
        workers: trainings at once.
        backend: `processes` of this machine, or `ray`: of the cluster of RAY_ADDRESS.
        gpus: of each training, for Ray.
    """

    texts: Input
    model: dict[str, Any]
    variants: dict[str, dict[str, Any]] = Field(min_length=1)
    optimizer: dict[str, dict[str, Any]] = {}
    choices: tuple[Choice, ...] = ()
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    seq_len: PositiveInt = 256
    trainer: TrainerConfig
    only: tuple[str, ...] = ()
    workers: Annotated[PositiveInt, NO_INFLUENCE] = 1
    backend: Annotated[Backend, NO_INFLUENCE] = "processes"
    gpus: Annotated[float, NO_INFLUENCE] = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> AblationConfig:
        named = [name for choice in self.choices for name in choice.variants]
        for name in [*named, *self.optimizer, *self.only]:
            if name not in self.variants:
                raise ValueError(f"there is no variant '{name}'. {did_you_mean(name, self.variants)}")
        if self.trainer.num_steps(self.seq_len) is None:
            raise ValueError("trainer.epochs: rows are drawn at random, so give the length in steps or tokens.")
        return self

    def model_of(self, variant: str) -> ModelConfig:
        """The network of a variant.

        Raises:
            UserError: it is impossible.
        """
        changes = self.variants[variant]
        settings = {**self.model, **changes}
        if isinstance(self.model.get("moe"), dict) and isinstance(changes.get("moe"), dict):
            settings["moe"] = {**self.model["moe"], **changes["moe"]}
        return validate(
            ModelConfig, {key: value for key, value in settings.items() if value is not None}, f"variant '{variant}'"
        )

    def trainer_of(self, variant: str) -> TrainerConfig:
        """The loop of a variant."""
        changes = self.optimizer.get(variant, {})
        data = self.trainer.model_dump()
        data["optimizer"] = {**data["optimizer"], **changes}
        return validate(TrainerConfig, data, f"variant '{variant}'")
