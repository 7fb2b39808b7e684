"""Settings of the stages `compress_fit` and `compress_compare`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import Field, PositiveInt, model_validator

from lmlab.config import Config
from lmlab.errors import UserError
from lmlab.methods.autocompressor.comparing.config import CompareConfig
from lmlab.runs import ModelInput, TokensInput
from lmlab.runs.loading import Loading
from lmlab.train import TrainerConfig


@contextmanager
def _of_the_recipe() -> Iterator[None]:
    """What a user did wrong is told as a problem of the recipe's field."""
    try:
        yield
    except UserError as error:
        raise ValueError(" ".join(filter(None, (error.message, error.remedy)))) from None


class CompressFitConfig(Config):
    """A kind of compression that learns.

    Attributes:
        tokens: tokenized training text.
        start: the model: a directory, a stage or a run. One that was trained to the same kind is trained further.
        compressor: the kind, by name: icae, kv_tokens, bi_tokens, meanpool, anchor_kv, ot_pool, summary or rmt.
        settings: of the kind, such as ratio, train (all, lora or new), and the weights of its losses: continuation,
            autoencode and distill.
        context: tokens that are compressed.
        continuation: tokens that follow them, which are learned.
        trainer: the loop.
    """

    tokens: TokensInput
    start: ModelInput
    compressor: str
    settings: dict[str, Any] = Field(default_factory=dict)
    context: PositiveInt = 512
    continuation: PositiveInt = 128
    trainer: TrainerConfig

    @model_validator(mode="after")
    def _check(self) -> CompressFitConfig:
        # here, so that a recipe is refused before its earlier stages have trained for hours
        from lmlab.methods.autocompressor.kinds.base import settings_of

        with _of_the_recipe():
            settings_of(self.compressor, self.settings, learns=True)
        return self

    def require_window(self, window: int) -> None:
        """Refuse rows that a model's window does not hold.

        Arguments:
            window: tokens of it.

        Raises:
            UserError: context and continuation are longer together.
        """
        if self.context + self.continuation > window:
            raise UserError(
                f"context {self.context} and continuation {self.continuation} exceed the model's window of {window}"
                " tokens.",
                "Lower one of them.",
            )


class CompressCompareConfig(CompareConfig, Loading):
    """What is compared, and on what.

    Attributes:
        model: a directory, a stage or a run.
    """

    model: ModelInput

    @model_validator(mode="after")
    def _check(self) -> CompressCompareConfig:
        from lmlab.methods.autocompressor.kinds.base import chosen, require_untrained

        with _of_the_recipe():
            for name in chosen(self.kinds):
                require_untrained(name)
        return self
