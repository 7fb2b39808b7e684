"""Stages of recipes: `quality_judge` compares excerpts, `quality_rater` learns from the judgments, `quality_annotate`
rates documents.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from lmlab.config import Config
from lmlab.data import Document, Tokenizer, read_documents
from lmlab.endpoints import Price
from lmlab.errors import UserError
from lmlab.fan_out import Backend
from lmlab.files import write_json
from lmlab.methods.qurating.judge import Judged, JudgePairs, Mode, make_judge
from lmlab.methods.qurating.judgments import read_judgments, write_judgments
from lmlab.methods.qurating.prompts import Criterion, criterion, load_wording
from lmlab.methods.qurating.rating.annotate import Annotation, annotate
from lmlab.methods.qurating.rating.excerpting import group_excerpts
from lmlab.methods.qurating.rating.pairs import PairConfig, components, make_groups
from lmlab.methods.qurating.rating.rater import Rater
from lmlab.methods.qurating.rating.train_rater import RaterConfig, train_rater
from lmlab.methods.qurating.report import annotation_sections, judgment_sections, rater_sections
from lmlab.methods.qurating.votes import order_effects, preference
from lmlab.progress import progress, short
from lmlab.reports import Section
from lmlab.runs import NO_INFLUENCE, Input, Stage, StageContext

JUDGMENTS = "judgments.parquet"


class JudgeConfig(Config):
    """Who judges, and how.

    Attributes:
        judge: `offline` (a rule, for rehearsals), `exact:DIRECTORY` (a local model's exact label probabilities), or an
            endpoint: `openai:MODEL`, `local:DIRECTORY`, ...
        mode: `logprobs` reads both labels' probabilities off one answer, `votes` samples `generations` answers.
        orders: show each pair in both orders, or in one.
        base_url, key_env, concurrency, max_cost_usd, price: of an endpoint.
    """

    judge: str = "offline"
    mode: Mode = "logprobs"
    generations: PositiveInt = 20
    orders: Literal["both", "one"] = "both"
    base_url: str | None = None
    key_env: str | None = None
    concurrency: PositiveInt | None = None
    max_cost_usd: float | None = None
    price: Price | None = None

    def endpoint_options(self) -> dict[str, Any]:
        """Those of an endpoint that are set."""
        names = ("base_url", "key_env", "concurrency", "max_cost_usd", "price")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


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
        return criterion(name, clause, load_wording() if wording is None else load_wording(wording))


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
    tokenizer: Input
    criteria: dict[str, CriterionConfig] = Field(min_length=1)
    judge: JudgeConfig = JudgeConfig()
    pairs: PairConfig = PairConfig()
    prompts: Path | None = None
    ratings: Input | None = None


class QualityJudge(Stage[JudgeStageConfig]):
    """Writes judgments.parquet and judging.json; replies are kept in replies.sqlite."""

    config_type: ClassVar[type[Config]] = JudgeStageConfig

    def plan(self, config: JudgeStageConfig) -> dict[str, str]:
        """The number of questions."""
        questions = (
            config.pairs.n
            * math.comb(config.pairs.k, 2)
            * (2 if config.judge.orders == "both" else 1)
            * len(config.criteria)
        )
        return {
            "judge": config.judge.judge,
            "questions": f"at most {questions:,}",
            "criteria": ", ".join(config.criteria),
        }

    def run(self, config: JudgeStageConfig, context: StageContext) -> dict[str, Any]:
        """Judge."""
        documents = documents_of(context.inputs["documents"])
        ratings = None if config.ratings is None else _ratings(context.inputs["ratings"], next(iter(config.criteria)))
        tokenizer = Tokenizer.load(context.inputs["tokenizer"])
        criteria = [each.make(name, config.prompts) for name, each in config.criteria.items()]
        return judge_documents(documents, tokenizer, criteria, config.judge, config.pairs, context.directory, ratings)

    def summary(self, results: dict[str, Any]) -> str:
        """Pairs."""
        return f"{results['groups']:,} groups, {results['questions']:,} questions to {results['judge']}."

    def report(self, config: JudgeStageConfig, results: dict[str, Any], directory: Path) -> list[Section]:
        """Effects of order, confidence, missing labels."""
        return judgment_sections(results)


def judge_documents(
    documents: list[Document],
    tokenizer: Tokenizer,
    criteria: list[Criterion],
    judge: JudgeConfig,
    pairs: PairConfig,
    directory: Path,
    ratings: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Compare excerpts of documents and write `judgments.parquet` and `judging.json` to a directory; returns the
    latter's figures.
    """
    groups = make_groups(documents, pairs, ratings)
    excerpts = [group_excerpts(group, tokenizer, pairs) for group in groups]
    who = make_judge(
        judge.judge, judge.mode, judge.generations, directory / "replies.sqlite", **judge.endpoint_options()
    )
    judging = JudgePairs(who, criteria, judge.orders == "both")
    total = len(groups) * pairs.k * (pairs.k - 1) * len(criteria) // (1 if judge.orders == "both" else 2)
    with progress("judge", total, "questions") as advance:
        found = judging.run(excerpts, advance)
    write_judgments(found.judgments, directory / JUDGMENTS)
    figures = judging_figures(found, who.generations) | {
        "judge": who.name,
        "connected_sets": components([each.ids for each in found.judgments]),
    }
    write_json(directory / "judging.json", figures)
    return figures


def judging_figures(found: Judged, generations: int) -> dict[str, Any]:
    """What there is to know of a judging: effects of order, histograms of confidence, missing labels by domain."""
    criteria: dict[str, Any] = {}
    for name in found.judgments[0].average if found.judgments else ():
        matrices = [
            preference(*judgment.votes[name], generations) for judgment in found.judgments if name in judgment.votes
        ]
        effects = order_effects(matrices)
        labels = [
            abs(2 * y - 1)
            for judgment in found.judgments
            for row in judgment.average[name].tolist()
            for y in row
            if y >= 0
        ]
        counts = [
            sum(low <= size < low + 0.1 or (low > 0.85 and size == 1) for size in labels) // 2
            for low in (number / 10 for number in range(10))
        ]
        bias = None if math.isnan(effects.position_bias) else effects.position_bias
        same = None if math.isnan(effects.swap_consistency) else effects.swap_consistency
        criteria[name] = {
            "labels": len(labels) // 2,
            "position_bias": bias,
            "swap_consistency": same,
            "confidence": counts,
        }
    missing = [
        {"criterion": c, "domain": d, "reason": r, "questions": n, "of": found.asked[c, d]}
        for (c, d, r), n in sorted(found.missing.items())
    ]
    return {
        "groups": len(found.judgments),
        "questions": sum(found.asked.values()),
        "skipped_groups": found.skipped,
        "identical_groups": found.identical,
        "criteria": criteria,
        "missing": missing,
    }


class RaterStageConfig(Config):
    """What a rater learns from.

    Attributes:
        judgments: a stage `quality_judge`, or a file or folder of judgments in a published layout.
        tokenizer: of a rater from scratch.
        init: a language model (a directory or a stage `train` or `export`) whose body and tokenizer the rater takes
            over.
        rater: how it is trained.
    """

    judgments: Input
    tokenizer: Input | None = None
    init: Input | None = None
    rater: RaterConfig = RaterConfig()

    @model_validator(mode="after")
    def _check(self) -> RaterStageConfig:
        if (self.tokenizer is None) == (self.init is None):
            raise ValueError("give either init, a model to start from, or tokenizer, for a rater from scratch.")
        return self


class QualityRater(Stage[RaterStageConfig]):
    """Writes rater/, a directory that transformers reads, and rater.json."""

    config_type: ClassVar[type[Config]] = RaterStageConfig
    distributed: ClassVar[bool] = True

    def run(self, config: RaterStageConfig, context: StageContext) -> dict[str, Any]:
        """Train."""
        judgments = list(read_judgments(judgments_of(context.inputs["judgments"])))
        init = model_directory(context.inputs["init"]) if config.init is not None else None
        tokenizer = Tokenizer.load(init if init is not None else context.inputs["tokenizer"])
        criteria = config.rater.criteria or tuple(judgments[0].average if judgments else ())
        return train_rater(judgments, criteria, tokenizer, config.rater, context.directory, init).results

    def summary(self, results: dict[str, Any]) -> str:
        """Accuracy."""
        if "metrics" not in results:
            return f"{results['pairs']:,} pairs."
        at = results["metrics"]["overall"]["at"]["0.5"]
        return (
            f"{results['pairs']:,} pairs; accuracy {at['accuracy'] or 0:.1%} on {at['pairs']:,} confident held-out"
            " labels."
        )

    def report(self, config: RaterStageConfig, results: dict[str, Any], directory: Path) -> list[Section]:
        """Accuracy by confidence."""
        return rater_sections(results)


class AnnotateConfig(Config):
    """Which documents, by which rater.

    Attributes:
        documents: a stage that collects, or a corpus of the data layer.
        rater: a stage `quality_rater`, or a rater's directory.
        block: documents that are rated at once.
        workers, backend: as in `lmlab.fan_out`.
    """

    documents: Input
    rater: Input
    text: str = "text"
    id: str | None = None
    block: PositiveInt = 1024
    precision: str = "auto"
    workers: Annotated[PositiveInt, NO_INFLUENCE] = 1
    backend: Annotated[Backend, NO_INFLUENCE] = "processes"


class QualityAnnotate(Stage[AnnotateConfig]):
    """Writes a Parquet file for each file of documents, with `{criterion}_average` and `{criterion}_chunks`."""

    config_type: ClassVar[type[Config]] = AnnotateConfig

    def run(self, config: AnnotateConfig, context: StageContext) -> dict[str, Any]:
        """Annotate."""
        corpus = documents_path(context.inputs["documents"])
        rater = context.inputs["rater"]
        job = Annotation(
            str(corpus),
            str(rater),
            str(context.directory / "rows"),
            config.text,
            config.id,
            block=config.block,
            precision=config.precision,
        )
        found = annotate(job, config.workers, config.backend)
        return found | {"criteria": list(Rater.from_pretrained(rater).criteria)}

    def summary(self, results: dict[str, Any]) -> str:
        """Sizes."""
        return f"{results['rows']:,} documents, {short(results['tokens'])} tokens" + (
            f", {results['empty']:,} empty." if results["empty"] else "."
        )

    def report(self, config: AnnotateConfig, results: dict[str, Any], directory: Path) -> list[Section]:
        """Distributions, correlations."""
        return annotation_sections(directory / "rows")


def documents_path(path: Path) -> Path:
    """The training documents of a stage that collects, or the path itself."""
    return path / "train.jsonl" if (path / "train.jsonl").exists() else path


def documents_of(path: Path) -> list[Document]:
    """All documents there."""
    return list(read_documents(documents_path(path)))


def judgments_of(path: Path) -> Path:
    """The judgments of a stage, or the path itself."""
    return path / JUDGMENTS if (path / JUDGMENTS).exists() else path


def rows_of(path: Path) -> Path:
    """The annotated rows of a stage, or the path itself."""
    return path / "rows" if (path / "rows").is_dir() else path


def model_directory(path: Path) -> Path:
    """The model of a stage, or the directory itself."""
    return path if (path / "config.json").exists() else path / "model"


def _ratings(path: Path, name: str) -> dict[str, float]:
    from lmlab.methods.qurating.selecting.table import RatedTable

    found: dict[str, float] = {}
    for chunk in RatedTable(rows_of(path)).chunks(["id", f"{name}_average"]):
        ids, values = (chunk.columns[column].to_pylist() for column in ("id", f"{name}_average"))
        found |= {str(id): value for id, value in zip(ids, values, strict=True) if value is not None}
    return found
