"""Settings of the method's stages: who judges which excerpts, how raters learn, what is rated, chosen and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from lmlab.config import NO_INFLUENCE, Config, Flag, FloatPrecision, names_in
from lmlab.distributed import Backend
from lmlab.errors import UserError
from lmlab.judging import Criterion, JudgeConfig, load_wording
from lmlab.methods.qurating.rating.criteria import criterion
from lmlab.methods.qurating.selecting.settings import SelectionSettings
from lmlab.methods.qurating.selecting.token_counts import share_of
from lmlab.runs import Input, ModelInput, VocabularyInput
from lmlab.train import ScheduleConfig

Design = Literal["adjacent", "random", "cross_domain", "within_domain", "active"]


class QualityJudgeConfig(JudgeConfig):
    """Who judges, and how: by default the rule `offline`, for rehearsals.

    Attributes:
        judge: who judges: offline (a rule), exact:DIRECTORY (a local model), openai:MODEL, local:DIRECTORY.
    """

    judge: str = "offline"


class CriterionConfig(Config):
    """A criterion of your own: its clause, or the file that holds it. For a built-in one neither."""

    clause: str | None = None
    file: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> CriterionConfig:
        if self.clause is not None and self.file is not None:
            raise ValueError("give either clause or file.")
        return self

    def make(self, name: str, wording: Path | None = None) -> Criterion:
        """The criterion."""
        try:
            clause = self.clause if self.file is None else self.file.read_text("utf-8")
        except FileNotFoundError:
            raise UserError(f"The clause of '{name}' is to be in '{self.file}', which is not there.") from None
        return criterion(name, clause, None if wording is None else load_wording(wording))


class ExcerptConfig(Config):
    """How long excerpts are.

    Attributes:
        tokens: shortest and longest, in the rater's tokens.
        p_max: probability of the longest; else the length is uniform between both.
        seed: of excerpts and pairs.
    """

    tokens: tuple[PositiveInt, PositiveInt] = (256, 512)
    p_max: float = Field(default=0.5, ge=0, le=1)
    seed: int = 42

    @model_validator(mode="after")
    def _check(self) -> ExcerptConfig:
        if self.tokens[0] > self.tokens[1]:
            raise ValueError(f"tokens must rise, not fall from {self.tokens[0]} to {self.tokens[1]}.")
        return self


class PairConfig(ExcerptConfig):
    """Which documents are compared, and what of them is shown.

    Attributes:
        design: `adjacent` groups documents as they come; `random` goes through them in random orders, again and again;
            `cross_domain` and `within_domain` compare documents of different and of one domain; `active` takes the
            random pairs of which a rater is least sure.
        n: groups to compare.
        k: texts of a group, all of which are compared with each other.
    """

    design: Design = "adjacent"
    n: Annotated[PositiveInt, Flag(("--pairs", "-n"))] = 1000
    k: int = Field(default=2, ge=2)


class JudgeStageConfig(Config):
    """Which excerpts are compared by whom.

    Attributes:
        documents: a stage that collects, or a file of documents.
        tokenizer: a tokenizer's directory or stage, by which excerpts are measured: the rater's.
        criteria: by name.
        prompts: a file of prompts in place of the built-in one.
        ratings: a stage `quality_annotate` whose ratings the design `active` goes by.
    """

    documents: Input
    tokenizer: VocabularyInput
    criteria: dict[str, CriterionConfig] = Field(min_length=1)
    judge: QualityJudgeConfig = QualityJudgeConfig()
    pairs: PairConfig = PairConfig()
    prompts: Path | None = None
    ratings: Input | None = None


class RaterConfig(Config):
    """How a rater is trained; the defaults are the paper's, apart from the size.

    Attributes:
        size: shape of a model from scratch, where no trained one is given; its `vocab_size` and `num_labels` follow
            from tokenizer and criteria.
        max_tokens: of a text.
        batch_pairs: pairs of a step, on average: rows hold whole groups.
        row_tokens: of a packed row.
        confidence: labels with |2y - 1| below it are not learned.
        label_temperature: sigmoid(logit(y) / T) is learned.
        criteria: learn only these.
        validation: share of the groups that is held out, whole documents.
        evaluations: how often the held-out groups are measured; the best checkpoint is kept.
        trainer: further settings of the loop.
    """

    size: dict[str, Any] = Field(default={"num_layers": 2, "d_model": 128, "num_heads": 4})
    max_tokens: PositiveInt = 512
    batch_pairs: PositiveInt = 512
    row_tokens: PositiveInt = 2048
    confidence: float = Field(default=0.5, ge=0, le=1)
    label_temperature: float = Field(default=1.0, gt=0)
    criteria: tuple[str, ...] = ()
    lr: float = Field(default=5e-5, gt=0)
    epochs: float = Field(default=2.0, gt=0)
    schedule: ScheduleConfig = ScheduleConfig(kind="linear", warmup_fraction=0.1, final_fraction=0.0)
    weight_decay: float = Field(default=0.1, ge=0)
    validation: float = Field(default=0.1, ge=0, lt=1)
    evaluations: PositiveInt = 4
    trainer: dict[str, Any] = Field(default={})
    seed: int = 0


class RaterStageConfig(Config):
    """What a rater learns from.

    Attributes:
        judgments: a stage `quality_judge`, or a file or folder of judgments in a published layout.
        tokenizer: of a rater from scratch.
        init: a language model (its directory, GGUF file, checkpoint, stage or run) whose body and tokenizer the rater
            takes over.
        rater: how it is trained.
    """

    judgments: Input
    tokenizer: VocabularyInput | None = None
    init: ModelInput | None = None
    rater: RaterConfig = RaterConfig()

    @model_validator(mode="after")
    def _check(self) -> RaterStageConfig:
        if (self.tokenizer is None) == (self.init is None):
            raise ValueError("give either init, a model to start from, or tokenizer, for a rater from scratch.")
        return self


class RatingOptions(Config):
    """How a corpus is read and rated.

    Attributes:
        text: field with the text.
        id: field with the id; by default rows are named by file and number.
        split: of a corpus, by name, or `all`; by default `train` where there are several.
        block: rows that are rated at once and written together.
        precision: of the rater: auto, fp32 or bf16.
        workers: processes that share the work; of `annotate` under torchrun each rank is one.
        backend: where they run: processes, or ray for a cluster that sees the folder.
    """

    text: Annotated[str, Flag(("--text-field",))] = "text"
    id: Annotated[str | None, Flag(("--id-field",))] = None
    split: str | None = None
    block: PositiveInt = 1024
    precision: FloatPrecision = "auto"
    workers: Annotated[PositiveInt, NO_INFLUENCE] = 1
    backend: Annotated[Backend, NO_INFLUENCE] = "processes"


class AnnotateOptions(RatingOptions):
    """How a corpus of any kind is rated from the command line.

    Attributes:
        input_ids: field with token ids to use in place of texts.
        ids_tokenizer: directory of the tokenizer that made them.
        columns: columns of the corpus to keep, with commas between them or repeated; by default all.
        gpus: GPUs of each process, for Ray.
    """

    input_ids: str | None = None
    ids_tokenizer: Path | None = None
    columns: tuple[str, ...] = ()
    gpus: float = Field(default=0, ge=0)

    @field_validator("columns", mode="before")
    @classmethod
    def _columns(cls, value: Any) -> Any:
        return names_in(value)


class AnnotateConfig(RatingOptions):
    """Which documents, by which rater.

    Attributes:
        documents: a stage that collects, or a corpus of the data layer.
        rater: a stage `quality_rater`, or a rater's directory.
    """

    documents: Input
    rater: Input


class AnalysisConfig(Config):
    """What the report looks into.

    Attributes:
        clusters: topics; 0 for none.
        groups: columns whose labels the table of bias goes by, with commas between them or repeated.
        examples: texts of each kind to be read.
        max_rows: of larger corpora, so many rows are looked at.
    """

    clusters: int = Field(default=25, ge=0)
    groups: tuple[str, ...] = ()
    examples: int = Field(default=3, ge=0)
    max_rows: PositiveInt = 20_000

    @field_validator("groups", mode="before")
    @classmethod
    def _groups(cls, value: Any) -> Any:
        return names_in(value)


class SelectStageConfig(SelectionSettings):
    """What is chosen of annotated documents; the settings of the choice are those of `SelectionSettings`.

    Attributes:
        annotated: a stage `quality_annotate`, or an annotated corpus.
        documents: a stage that collects, whose held-out documents go along.
        text: column of texts.
        report: what the report looks into; None for nothing beyond the funnel.
    """

    annotated: Input
    documents: Input | None = None
    text: str = "text"
    report: AnalysisConfig | None = AnalysisConfig()

    @model_validator(mode="after")
    def _check(self) -> SelectStageConfig:
        share_of(self.tokens)
        return self


class CompareConfig(Config):
    """Evaluations of models that were trained on different choices of equally many tokens.

    Attributes:
        chosen, uniform: stages `evaluate`: of the model trained on the choice, and of the one trained on documents
            taken at random.
    """

    chosen: Input
    uniform: Input
