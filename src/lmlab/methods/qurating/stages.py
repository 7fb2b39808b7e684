"""Stages of recipes: `quality_judge` compares excerpts, `quality_rater` learns from the judgments, `quality_annotate`
rates documents, `quality_select` chooses among them, `quality_compare` says whether the choice helped.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lmlab.data import Document, read_documents
from lmlab.evals import bits_per_byte, by_domain, pair_rows, ratio, read_rows
from lmlab.files import write_json, write_jsonl
from lmlab.judging import read_judgments
from lmlab.methods.qurating.analysis.analyze import Analysis, analyze
from lmlab.methods.qurating.annotating.annotate import annotate
from lmlab.methods.qurating.annotating.corpus import Annotation
from lmlab.methods.qurating.config import (
    AnnotateConfig,
    CompareConfig,
    JudgeStageConfig,
    RaterStageConfig,
    SelectStageConfig,
)
from lmlab.methods.qurating.rating.encoder_rater import load_rater
from lmlab.methods.qurating.rating.judge_documents import JUDGMENTS, judge_documents
from lmlab.methods.qurating.rating.train_rater import train_rater
from lmlab.methods.qurating.report import (
    annotation_sections,
    comparison_sections,
    judgment_sections,
    rater_sections,
    selection_sections,
)
from lmlab.methods.qurating.selecting.materialize import chosen_rows
from lmlab.methods.qurating.selecting.plan import plan_selection
from lmlab.methods.qurating.selecting.selection import Manifest, select
from lmlab.methods.qurating.selecting.tables.lengths import budget_of
from lmlab.methods.qurating.selecting.tables.table import RatedTable
from lmlab.progress import short
from lmlab.reports import Section
from lmlab.runs import Artifact, Documents, Model, ReadResults, Results, Stage, StageContext, Vocabulary
from lmlab.words import counted


class JudgingResults(Results):
    """What was asked, by criterion the effects of order and how sure the judge was, what labels are missing, and for
    each reason the first that the judge said of it.
    """

    judge: str
    groups: int
    questions: int
    skipped_groups: int
    identical_groups: int
    connected_sets: int
    criteria: dict[str, dict[str, Any]]
    missing: list[dict[str, Any]]
    errors: dict[str, str] = {}


class QualityJudge(Stage[JudgeStageConfig, JudgingResults]):
    """Writes judgments.parquet and judging.json; replies are kept in replies.sqlite."""

    def plan(self, config: JudgeStageConfig, promised: Mapping[str, Any]) -> dict[str, str]:
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

    def run(self, config: JudgeStageConfig, context: StageContext) -> JudgingResults:
        """Judge."""
        documents = documents_of(context.inputs["documents"])
        ratings = None if config.ratings is None else _ratings(context.inputs["ratings"], next(iter(config.criteria)))
        tokenizer = context.find(Vocabulary, "tokenizer").load()
        criteria = [each.make(name, config.prompts) for name, each in config.criteria.items()]
        found = judge_documents(documents, tokenizer, criteria, config.judge, config.pairs, context.directory, ratings)
        return JudgingResults(**found)

    def summary(self, results: JudgingResults) -> str:
        """Pairs."""
        return f"{counted(results.groups, 'groups')}, {counted(results.questions, 'questions')} to {results.judge}."

    def report(self, config: JudgeStageConfig, results: JudgingResults, directory: Path) -> list[Section]:
        """Effects of order, confidence, missing labels."""
        return judgment_sections(results.to_json())


class RaterResults(Results):
    """What was learned from, how fast, and accuracy on held-out judgments by criterion."""

    training: dict[str, Any]
    groups: int
    pairs: int
    held_out_groups: int
    dropped: dict[str, int]
    padding: float
    criteria: list[str]
    tokens_read_per_second: float
    metrics: dict[str, Any] | None = None
    warning: str | None = None


class QualityRater(Stage[RaterStageConfig, RaterResults]):
    """Writes rater/, a directory that transformers reads, and rater.json."""

    distributed: ClassVar[bool] = True

    def run(self, config: RaterStageConfig, context: StageContext) -> RaterResults:
        """Train."""
        judgments = list(read_judgments(judgments_of(context.inputs["judgments"])))
        init = context.find(Model, "init") if config.init is not None else None
        tokenizer = init.tokenizer() if init is not None else context.find(Vocabulary, "tokenizer").load()
        criteria = config.rater.criteria or tuple(judgments[0].average if judgments else ())
        found = train_rater(judgments, criteria, tokenizer, config.rater, context.directory, init).results
        return RaterResults(**found)

    def summary(self, results: RaterResults) -> str:
        """Accuracy."""
        if results.metrics is None:
            return f"{counted(results.pairs, 'pairs')}."
        at = results.metrics["overall"]["at"]["0.5"]
        return (
            f"{results.pairs:,} pairs; accuracy {at['accuracy'] or 0:.1%} on {at['pairs']:,} confident held-out labels."
        )

    def report(self, config: RaterStageConfig, results: RaterResults, directory: Path) -> list[Section]:
        """Accuracy by confidence."""
        return rater_sections(results.to_json())


class AnnotateResults(ReadResults):
    """Sizes; `rated` by the attempt that finished, `reused` of rows that an earlier state of the corpus had. Of what is
    empty `rejects` could not be read.
    """

    rows: int
    tokens: int
    empty: int
    rated: int
    reused: int = 0
    criteria: list[str]


class QualityAnnotate(Stage[AnnotateConfig, AnnotateResults]):
    """Writes a Parquet file for each file of documents, with `{criterion}_average` and `{criterion}_chunks`."""

    def run(self, config: AnnotateConfig, context: StageContext) -> AnnotateResults:
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
            split=config.split,
        )
        found = annotate(job, config.workers, config.backend)
        return AnnotateResults(**found, criteria=list(load_rater(rater).criteria))

    def summary(self, results: AnnotateResults) -> str:
        """Sizes."""
        empty = f", {results.empty:,} empty" if results.empty else ""
        return f"{results.rows:,} documents, {short(results.tokens)} tokens{empty}. {results.set_aside()}".rstrip()

    def report(self, config: AnnotateConfig, results: AnnotateResults, directory: Path) -> list[Section]:
        """Distributions, correlations."""
        return annotation_sections(directory / "rows")


class SelectionResults(Results):
    """Sizes of the choice and of the corpus, and how often rows are repeated."""

    rows: int
    tokens: int
    of_rows: int
    of_tokens: int
    noise: str
    mean_z: float | None
    dropped: dict[str, int]
    repeats: float


class QualitySelect(Stage[SelectStageConfig, SelectionResults]):
    """Writes manifest.parquet, train.jsonl with the chosen documents, heldout.jsonl, plan.json and selection.json."""

    gives: ClassVar[tuple[type[Artifact], ...]] = (Documents,)

    def run(self, config: SelectStageConfig, context: StageContext) -> SelectionResults:
        """Plan, choose, write."""
        rows = rows_of(context.inputs["annotated"])
        settings = config.resolved(budget_of(config.tokens, rows, config.length), context.seed)
        plan = plan_selection(rows, settings)
        write_json(context.directory / "plan.json", plan.to_json())
        manifest = select(rows, settings)
        manifest.write(context.directory / "manifest.parquet")
        write_json(context.directory / "selection.json", manifest.report)
        _write_documents(rows, manifest, config, context.directory)
        if config.documents is not None:
            shutil.copyfile(context.inputs["documents"] / "heldout.jsonl", context.directory / "heldout.jsonl")
        if config.report is not None:
            analyze(rows, manifest, settings, config.report, config.text).write(context.directory)
        keys = ("rows", "tokens", "of_rows", "of_tokens", "noise", "mean_z", "dropped")
        return SelectionResults(**{key: manifest.report[key] for key in keys}, repeats=plan.repeats)

    def summary(self, results: SelectionResults) -> str:
        """Sizes."""
        return (
            f"{results.rows:,} of {counted(results.of_rows, 'documents')}, {short(results.tokens)} of"
            f" {short(results.of_tokens)} tokens."
        )

    def report(self, config: SelectStageConfig, results: SelectionResults, directory: Path) -> list[Section]:
        """Plan, funnel, criteria, topics, bias, extremes."""
        return selection_sections(directory, Analysis.read(directory), context_name=directory.name)


def _write_documents(rows: Path, manifest: Manifest, config: SelectStageConfig, directory: Path) -> None:
    """The chosen rows as documents, in the order of the corpus."""
    rated = RatedTable(rows)
    known = rated.columns
    names = [name for name in (_id(config), config.text, _domain(config), "group") if name in known]

    def documents() -> Any:
        for part, _ in chosen_rows(rated, manifest, names):
            for row in part.to_pylist():
                domain = row.get(_domain(config)) or "text"
                yield {
                    "id": str(row.get(_id(config)) or ""),
                    "text": row[config.text],
                    "domain": str(domain),
                    "group": str(row.get("group") or ""),
                }

    write_jsonl(directory / "train.jsonl", documents())


def _id(config: SelectStageConfig) -> str:
    return config.id or "id"  # as documents have it


def _domain(config: SelectStageConfig) -> str:
    return config.domain or "domain"


class ComparisonResults(Results):
    """Bits per byte of both by domain, and their difference with its standard error."""

    domains: dict[str, dict[str, float]]
    mean_difference: float
    error: float


class QualityCompare(Stage[CompareConfig, ComparisonResults]):
    """Writes comparison.json: bits per byte of both by domain, paired by document, and whether the choice helped."""

    def run(self, config: CompareConfig, context: StageContext) -> ComparisonResults:
        """Compare."""
        found = {
            name: by_domain(list(read_rows([context.inputs[name] / "documents-model.jsonl"])))
            for name in ("chosen", "uniform")
        }
        domains: dict[str, Any] = {}
        for domain, rows in found["chosen"].items():
            pairs = list(zip(*pair_rows(rows, found["uniform"].get(domain, [])), strict=True))
            gained = ratio(
                [mine["bits"] - theirs["bits"] for mine, theirs in pairs], [mine["bytes"] for mine, _ in pairs]
            )
            each = {
                name: bits_per_byte([pair[side] for pair in pairs]).value
                for side, name in enumerate(("chosen", "uniform"))
            }
            domains[domain] = each | {
                "difference": gained.value,
                "error": gained.standard_error or 0.0,
                "documents": len(pairs),
            }
        mean = float(np.mean([each["difference"] for each in domains.values()]))
        error = float(np.sqrt(sum(each["error"] ** 2 for each in domains.values()))) / len(domains)
        results = ComparisonResults(domains=domains, mean_difference=mean, error=error)
        write_json(context.directory / "comparison.json", results.to_json())
        return results

    def summary(self, results: ComparisonResults) -> str:
        """The verdict."""
        return verdict(results)

    def headline(self, results: ComparisonResults) -> dict[str, str]:
        """The difference."""
        return {"Choice against uniform": f"{results.mean_difference:+.3f} bits a byte"}

    def report(self, config: CompareConfig, results: ComparisonResults, directory: Path) -> list[Section]:
        """The table."""
        return comparison_sections(results.to_json(), verdict(results))


def verdict(results: ComparisonResults) -> str:
    """Whether the choice helped, in a sentence."""
    mean, error = results.mean_difference, results.error
    figure = f"{mean:+.3f} ± {error:.3f} bits a byte, mean over domains, one seed"
    if abs(mean) <= 2 * error:
        return f"The choice made no difference that the held-out text can show: {figure}."
    return f"The choice {'helped' if mean < 0 else 'hurt'}: {figure}."


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


def _ratings(path: Path, name: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for chunk in RatedTable(rows_of(path)).chunks(["id", f"{name}_average"]):
        ids, values = (chunk.columns[column].to_pylist() for column in ("id", f"{name}_average"))
        found |= {str(id): value for id, value in zip(ids, values, strict=True) if value is not None}
    return found
