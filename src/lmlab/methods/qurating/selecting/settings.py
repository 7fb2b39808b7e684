"""What is chosen, and how."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from lmlab.config import Config
from lmlab.methods.qurating.selecting.inclusion import check_temperature
from lmlab.methods.qurating.selecting.token_counts import parse_tokens

Mode = Literal["sample", "top_k", "bottom_k", "uniform"]


class SelectionConfig(Config):
    """What is chosen, and how.

    Attributes:
        mode: `sample` adds noise to normalised ratings, `top_k` and `bottom_k` take the highest and lowest, `uniform`
            asks no ratings.
        metric: the column of ratings.
        weights: several columns with weights in its place: their normalised ratings are added up.
        tau: temperature of the sample, in standard deviations: 0 is top-k, infinity uniform.
        tokens: how many to choose. The row with which they are reached is chosen too.
        normalize: subtract the mean and divide by the population's standard deviation of all rows.
        domain: a column of labels, each of which is chosen from on its own.
        domains: `proportional` keeps the labels' shares of tokens; or weights of labels.
        invert: the lowest first.
        id, length: columns. Without a column of ids (`id`, if none is named) rows are known by their number; without
            lengths `input_ids` are counted.
        minimum, maximum: bounds of columns; rows beyond them are left out before anything else.
        uncertainty: a column that is subtracted `penalty` times from the normalised rating, such as the standard
            deviation over raters.
        cap_duplicates: at most so many rows of each label of a column, the ones with the highest keys.
        drop_nonfinite, skip_empty: leave such rows out, and count them, in place of an error.
    """

    model_config = ConfigDict(ser_json_inf_nan="strings")

    mode: Mode
    metric: str | None = None
    weights: dict[str, float] = Field(default={})
    tau: float = Field(default=2.0, allow_inf_nan=True)
    tokens: int = Field(ge=0)
    normalize: bool = True
    domain: str | None = None
    domains: Literal["proportional"] | dict[str, float] = "proportional"
    invert: bool = False
    seed: int = Field(default=42, ge=0)
    id: str | None = None
    length: str = "length"
    minimum: dict[str, float] = Field(default={})
    maximum: dict[str, float] = Field(default={})
    uncertainty: str | None = None
    penalty: float = Field(default=1.0, ge=0)
    cap_duplicates: dict[str, int] = Field(default={})
    drop_nonfinite: bool = False
    skip_empty: bool = False

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
        return self.mode == "uniform" or (self.mode == "sample" and self.tau > 0)

    def describe_noise(self) -> str:
        """What the mode and the temperature come to, in words."""
        if self.mode == "uniform" or (self.mode == "sample" and math.isinf(self.tau)):
            return "uniform: ratings play no part"
        if not self.noise:
            return "no noise: plain " + ("bottom-k" if (self.mode == "bottom_k") != self.invert else "top-k")
        return f"Gumbel noise of {self.tau * math.pi / math.sqrt(6):.2f} standard deviations of the ratings" + (
            ", inverted" if self.invert else ""
        )
