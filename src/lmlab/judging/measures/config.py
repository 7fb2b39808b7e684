"""Settings of what is measured on a judge's grades; they load nothing."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lmlab.config import Config
from lmlab.runs.loading import Drawn

CalibrationKind = Literal["linear", "isotonic"]


class GradeColumns(Config):
    """Where grades stand in a table.

    Attributes:
        judge_column: column with the judge's grades.
        human_column: column with people's grades.
        cluster_column: column of what makes rows depend on each other.
    """

    judge_column: str = "judge"
    human_column: str = "human"
    cluster_column: str | None = None


class Covered(Config):
    """How wide intervals are.

    Attributes:
        level: what share of intervals is to hold the truth.
    """

    level: float = Field(default=0.95, ge=0.5, le=0.999)


class ValidateConfig(GradeColumns, Drawn):
    """How a judge is held against people.

    Attributes:
        second_column: column of a second person, for the ceiling.
        length_column: column with lengths of answers, or with answers.
        system_column: column of who answered.
        own_family: systems of the judge's own family, by names or patterns such as gpt-*; needs system_column.
        sample_columns: columns with several grades of each answer by the judge, for how far it agrees with itself; its
            grade is their mean.
        by: column by whose values to tell it too.
        min_spearman: exit with 3 where the correlation is lower.
        max_bias: exit with 3 where the bias is larger.
        calibrate: also of grades calibrated on other folds: linear or isotonic.
        resamples: of the bootstrap.
    """

    second_column: str | None = None
    length_column: str | None = None
    system_column: str | None = None
    own_family: tuple[str, ...] = ()
    sample_columns: tuple[str, ...] = ()
    by: tuple[str, ...] = ()
    min_spearman: float | None = None
    max_bias: float | None = None
    calibrate: CalibrationKind | None = None
    resamples: int = Field(default=1000, ge=20)

    @model_validator(mode="after")
    def _goes_together(self) -> ValidateConfig:
        if self.own_family and self.system_column is None:
            raise ValueError("own_family needs system_column, the column of who answered.")
        if len(self.sample_columns) == 1:
            raise ValueError("sample_columns: name at least two columns.")
        return self


class CalibrateConfig(GradeColumns, Covered, Drawn):
    """How people's grades are learned from a judge's.

    Attributes:
        kind: linear or isotonic.
    """

    kind: CalibrationKind = "isotonic"


class EstimateConfig(GradeColumns, Covered):
    """How a mean of people's grades is estimated."""


class DrawConfig(Drawn):
    """Which answers people are asked to grade.

    Attributes:
        labels: how many.
        by_group: draw from each group its share.
    """

    labels: int = Field(default=60, ge=1)
    by_group: bool = False
