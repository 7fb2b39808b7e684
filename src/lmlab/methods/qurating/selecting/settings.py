"""What is chosen, and how."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, NonNegativeInt, field_validator, model_validator

from lmlab.config import Config, Flag, names_in, validate
from lmlab.methods.qurating.selecting.drawing.temperature import check_temperature, is_zero
from lmlab.methods.qurating.selecting.token_counts import parse_tokens

Mode = Literal["sample", "top_k", "bottom_k", "uniform"]

USUAL_SEED = 42  # of the published selections, so that they can be drawn again


class SelectionSettings(Config):
    """What is chosen, and how: of the stage, the pipeline's file and the command alike.

    Attributes:
        mode: `sample` adds noise to normalized ratings, `top_k` and `bottom_k` take the highest and lowest, `uniform`
            asks no ratings.
        metric: the column of ratings, such as educational_value_average.
        weights: several columns with weights in its place: their normalized ratings are added up.
        tau: temperature of the sample, in standard deviations: 0 is top-k, inf uniform.
        tokens: how many to choose: 500000, 1.5M, 30B, or a share such as 30%. The row with which they are reached is
            chosen too.
        normalize: subtract the mean and divide by the population's standard deviation of all rows.
        domain: a column of labels, each of which is chosen from on its own; dotted paths work.
        domains: `proportional` keeps the labels' shares of tokens; or weights of labels.
        invert: the lowest first.
        seed: of the noise; by default the recipe's, and 42 where there is none.
        id: column of ids, which noise is keyed by; by default id, or the row's number.
        row_ids: key noise by the rows' numbers, whatever columns there are; for corpora whose ids are not unique.
        length: column of lengths in tokens; without it `input_ids` are counted.
        minimum: least values of columns; rows below are left out before anything else.
        maximum: greatest values of columns; rows above are left out before anything else.
        uncertainty: a column that is subtracted `penalty` times from the normalized rating, such as the standard
            deviation over raters.
        penalty: how many times `uncertainty` is subtracted.
        cap_duplicates: at most so many rows of each label of a column, the ones with the highest keys; rows without a
            label (null, empty, or the -1 of clusterings) are no duplicates of each other.
        drop_nonfinite: leave out rows without a finite rating, and count them, in place of an error.
        skip_empty: leave out rows without tokens, and count them, in place of an error.
    """

    model_config = ConfigDict(ser_json_inf_nan="strings")

    mode: Mode
    metric: Annotated[str | None, Flag(("--metric", "-m"))] = None
    weights: dict[str, float] = Field(default={})
    tau: float = Field(default=2.0, allow_inf_nan=True)
    tokens: str | float
    normalize: bool = True
    domain: str | None = None
    domains: Literal["proportional"] | dict[str, float] = "proportional"
    invert: bool = False
    seed: NonNegativeInt | None = None
    id: str | None = None
    row_ids: bool = False
    length: str = "length"
    minimum: Annotated[dict[str, float], Flag(("--min",))] = Field(default={})
    maximum: Annotated[dict[str, float], Flag(("--max",))] = Field(default={})
    uncertainty: str | None = None
    penalty: float = Field(default=1.0, ge=0)
    cap_duplicates: dict[str, int] = Field(default={})
    drop_nonfinite: bool = False
    skip_empty: bool = False

    def resolved(self, tokens: int, seed: int = USUAL_SEED) -> SelectionConfig:
        """The settings for one corpus.

        Arguments:
            tokens: the budget as a number (`budget_of`).
            seed: where the settings name none.
        """
        own = {name: getattr(self, name) for name in SelectionSettings.model_fields}
        given = {"tokens": tokens, "seed": seed if self.seed is None else self.seed}
        return validate(SelectionConfig, own | given, "the selection")


class TableFormat(Config):
    """How rows are written.

    Attributes:
        format: parquet or jsonl.
    """

    format: Literal["parquet", "jsonl"] = "parquet"


class ShardOptions(TableFormat):
    """How the rows of a choice are written.

    Attributes:
        shard_tokens: tokens of a written shard.
        columns: columns to write, with commas between them or repeated; by default all.
    """

    shard_tokens: str = "500M"
    columns: tuple[str, ...] = ()

    @field_validator("columns", mode="before")
    @classmethod
    def _columns(cls, value: Any) -> Any:
        return names_in(value)


class SelectionConfig(SelectionSettings):
    """The settings of a choice from one corpus, whose size is known."""

    tokens: int = Field(ge=0)
    seed: NonNegativeInt = USUAL_SEED

    @field_validator("tokens", mode="before")
    @classmethod
    def _tokens(cls, value: Any) -> int:
        return parse_tokens(value)

    @model_validator(mode="after")
    def _check(self) -> SelectionConfig:
        check_temperature(self.tau)
        if self.metric is not None and self.weights:
            raise ValueError("give either metric or weights.")
        if self.mode != "uniform" and not self.metrics:
            raise ValueError(f"the mode {self.mode} needs a metric.")
        if self.row_ids and self.id is not None:
            raise ValueError("give either id or row_ids.")
        if isinstance(self.domains, dict) and self.domain is None:
            raise ValueError("weights of domains need the column 'domain'.")
        if isinstance(self.domains, dict) and (
            min(self.domains.values(), default=0) < 0 or sum(self.domains.values()) <= 0
        ):
            raise ValueError("weights of domains must be 0 or more, and one of them more.")
        if len(self.cap_duplicates) > 1 or any(count < 1 for count in self.cap_duplicates.values()):
            raise ValueError("cap_duplicates takes one column, and at least 1 row of each label.")
        return self

    @property
    def metrics(self) -> dict[str, float]:
        """Columns of ratings and their weights."""
        return {} if self.mode == "uniform" else self.weights or ({} if self.metric is None else {self.metric: 1.0})

    @property
    def noise(self) -> bool:
        """Whether chance plays a part."""
        return self.mode == "uniform" or (self.mode == "sample" and not is_zero(self.tau))

    def describe_noise(self) -> str:
        """What the mode and the temperature come to, in words."""
        if self.mode == "uniform" or (self.mode == "sample" and math.isinf(self.tau)):
            return "uniform: ratings play no part"
        if not self.noise:
            return "no noise: plain " + ("bottom-k" if (self.mode == "bottom_k") != self.invert else "top-k")
        return f"Gumbel noise of {self.tau * (math.pi / math.sqrt(6)):.4g} standard deviations of the ratings" + (
            ", inverted" if self.invert else ""
        )
