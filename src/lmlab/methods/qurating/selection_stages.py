"""Stages of recipes: `quality_select` chooses documents by rating, `quality_compare` says whether the choice helped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from lmlab.config import Config, validate
from lmlab.evals import bits_per_byte, by_domain, pair_rows, ratio, read_rows
from lmlab.files import write_json, write_jsonl
from lmlab.methods.qurating.analysis.analyse import Analysis, AnalysisConfig, analyse
from lmlab.methods.qurating.report import comparison_sections, selection_sections
from lmlab.methods.qurating.selecting.materialize import chosen_rows
from lmlab.methods.qurating.selecting.plan import plan_selection
from lmlab.methods.qurating.selecting.selection import Manifest, select
from lmlab.methods.qurating.selecting.settings import Mode, SelectionConfig
from lmlab.methods.qurating.selecting.table import RatedTable, budget_of
from lmlab.methods.qurating.selecting.token_counts import share_of
from lmlab.methods.qurating.stages import rows_of
from lmlab.progress import short
from lmlab.reports import Section
from lmlab.runs import Input, Stage, StageContext


class SelectStageConfig(Config):
    """What is chosen of annotated documents.

    Attributes:
        annotated: a stage `quality_annotate`, or an annotated corpus.
        documents: a stage that collects, whose held-out documents go along.
        tokens: a number, or a share of the corpus such as `30%`.
        domain: the column of domains; None chooses from all documents at once.
        report: what the report looks into; None for nothing beyond the funnel.

    The others are those of `SelectionConfig`.
    """

    annotated: Input
    documents: Input | None = None
    mode: Mode
    metric: str | None = None
    weights: dict[str, float] = Field(default={})
    tau: float = Field(default=2.0, allow_inf_nan=True)
    tokens: str | float
    domain: str | None = "domain"
    domains: Literal["proportional"] | dict[str, float] = "proportional"
    normalize: bool = True
    invert: bool = False
    seed: int | None = None
    id: str | None = "id"
    text: str = "text"
    cap_duplicates: dict[str, int] = Field(default={})
    minimum: dict[str, float] = Field(default={})
    maximum: dict[str, float] = Field(default={})
    drop_nonfinite: bool = True
    skip_empty: bool = True
    report: AnalysisConfig | None = AnalysisConfig()

    @model_validator(mode="after")
    def _check(self) -> SelectStageConfig:
        share_of(self.tokens)
        return self

    def selection(self, tokens: int, seed: int) -> SelectionConfig:
        """The settings of the choice."""
        own = set(SelectionConfig.model_fields) & set(type(self).model_fields)
        values = {name: getattr(self, name) for name in own} | {
            "tokens": tokens,
            "seed": self.seed if self.seed is not None else seed,
        }
        return validate(SelectionConfig, values, "the selection")


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


class CompareConfig(Config):
    """Evaluations of models that were trained on different choices of equally many tokens.

    Attributes:
        chosen, uniform: stages `evaluate`: of the model trained on the choice, and of the one trained on documents
            taken at random.
    """

    chosen: Input
    uniform: Input


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
