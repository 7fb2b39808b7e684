"""Stages of recipes: `quality_judge` compares excerpts, `quality_rater` learns from the judgments, `quality_annotate`
rates documents, `quality_select` chooses among them, `quality_compare` says whether the choice helped.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lmlab.config import Config
from lmlab.data import Document, Tokenizer, read_documents
from lmlab.evals import bits_per_byte, by_domain, pair_rows, ratio, read_rows
from lmlab.files import write_json, write_jsonl
from lmlab.judging import read_judgments
from lmlab.methods.qurating.analysis.analyse import Analysis, analyse
from lmlab.methods.qurating.config import (
    AnnotateConfig,
    CompareConfig,
    JudgeStageConfig,
    RaterStageConfig,
    SelectStageConfig,
)
from lmlab.methods.qurating.rating.annotate import Annotation, annotate
from lmlab.methods.qurating.rating.judge_documents import JUDGMENTS, judge_documents
from lmlab.methods.qurating.rating.rater import Rater
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
from lmlab.methods.qurating.selecting.table import RatedTable, budget_of
from lmlab.progress import short
from lmlab.reports import Section
from lmlab.runs import Stage, StageContext


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


class QualitySelect(Stage[SelectStageConfig]):
    """Writes manifest.parquet, train.jsonl with the chosen documents, heldout.jsonl, plan.json and selection.json."""

    config_type: ClassVar[type[Config]] = SelectStageConfig

    def run(self, config: SelectStageConfig, context: StageContext) -> dict[str, Any]:
        """Plan, choose, write."""
        rows = rows_of(context.inputs["annotated"])
        settings = config.selection(budget_of(config.tokens, rows), context.seed)
        plan = plan_selection(rows, settings)
        write_json(context.directory / "plan.json", plan.to_json())
        manifest = select(rows, settings)
        manifest.write(context.directory / "manifest.parquet")
        write_json(context.directory / "selection.json", manifest.report)
        _write_documents(rows, manifest, config, context.directory)
        if config.documents is not None:
            shutil.copyfile(context.inputs["documents"] / "heldout.jsonl", context.directory / "heldout.jsonl")
        if config.report is not None:
            analyse(rows, manifest, settings, config.report, config.text).write(context.directory)
        keys = ("rows", "tokens", "of_rows", "of_tokens", "noise", "mean_z", "dropped")
        return {key: manifest.report[key] for key in keys} | {"repeats": plan.repeats}

    def summary(self, results: dict[str, Any]) -> str:
        """Sizes."""
        return (
            f"{results['rows']:,} of {results['of_rows']:,} documents, {short(results['tokens'])} of"
            f" {short(results['of_tokens'])} tokens."
        )

    def report(self, config: SelectStageConfig, results: dict[str, Any], directory: Path) -> list[Section]:
        """Plan, funnel, criteria, topics, bias, extremes."""
        return selection_sections(directory, Analysis.read(directory), context_name=directory.name)


def _write_documents(rows: Path, manifest: Manifest, config: SelectStageConfig, directory: Path) -> None:
    """The chosen rows as documents, in the order of the corpus."""
    rated = RatedTable(rows)
    known = rated.columns
    names = [name for name in (config.id, config.text, config.domain, "group") if name and name in known]

    def documents() -> Any:
        for part, _ in chosen_rows(rated, manifest, names):
            for row in part.to_pylist():
                domain = row.get(config.domain or "") or "text"
                yield {
                    "id": str(row.get(config.id or "")),
                    "text": row[config.text],
                    "domain": str(domain),
                    "group": str(row.get("group") or ""),
                }

    write_jsonl(directory / "train.jsonl", documents())


class QualityCompare(Stage[CompareConfig]):
    """Writes comparison.json: bits per byte of both by domain, paired by document, and whether the choice helped."""

    config_type: ClassVar[type[Config]] = CompareConfig

    def run(self, config: CompareConfig, context: StageContext) -> dict[str, Any]:
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
        results = {"domains": domains, "mean_difference": mean, "error": error}
        write_json(context.directory / "comparison.json", results)
        return results

    def summary(self, results: dict[str, Any]) -> str:
        """The verdict."""
        return verdict(results)

    def headline(self, results: dict[str, Any]) -> dict[str, str]:
        """The difference."""
        return {"Choice against uniform": f"{results['mean_difference']:+.3f} bits a byte"}

    def report(self, config: CompareConfig, results: dict[str, Any], directory: Path) -> list[Section]:
        """The table."""
        return comparison_sections(results, verdict(results))


def verdict(results: dict[str, Any]) -> str:
    """Whether the choice helped, in a sentence."""
    mean, error = results["mean_difference"], results["error"]
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


def model_directory(path: Path) -> Path:
    """The model of a stage, or the directory itself."""
    return path if (path / "config.json").exists() else path / "model"


def _ratings(path: Path, name: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for chunk in RatedTable(rows_of(path)).chunks(["id", f"{name}_average"]):
        ids, values = (chunk.columns[column].to_pylist() for column in ("id", f"{name}_average"))
        found |= {str(id): value for id, value in zip(ids, values, strict=True) if value is not None}
    return found
