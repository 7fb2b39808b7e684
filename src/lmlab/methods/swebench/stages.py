"""Stages of recipes: `swe_infer` asks a model for patches, `swe_evaluate` runs the tests and says which issues they
resolve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import model_validator

from lmlab.config import part_of
from lmlab.endpoints import Endpoint
from lmlab.errors import LmlabError
from lmlab.files import describe
from lmlab.methods.swebench.artifacts import Patches
from lmlab.methods.swebench.config import CountingConfig, EvaluateConfig, InstancesConfig, WorkspaceConfig
from lmlab.methods.swebench.grading.run_report import log_folder
from lmlab.methods.swebench.harness.evaluate import evaluate
from lmlab.methods.swebench.harness.open import open_judge, open_workspaces, trees_beside
from lmlab.methods.swebench.harness.repairing import repaired
from lmlab.methods.swebench.inference.contexts import counter_of
from lmlab.methods.swebench.inference.infer import infer
from lmlab.methods.swebench.inference.settings import InferConfig
from lmlab.methods.swebench.instances.load import load_chosen, load_instances
from lmlab.methods.swebench.instances.predictions import GOLD, by_model, load_predictions
from lmlab.methods.swebench.report import evaluation_page, model_sections
from lmlab.reports import Section
from lmlab.runs import Artifact, ModelInput, Results, Stage, StageContext, Vocabulary
from lmlab.runs.stage import InputMarker
from lmlab.words import counted

_RUN = "run"
_SHOWN = 5  # in a message: enough to see what failed


PatchesInput = Annotated[str, InputMarker(Patches)]
"""An input where patches are looked for."""


class SweInferConfig(InstancesConfig, InferConfig, WorkspaceConfig, CountingConfig):
    """What the stage `swe_infer` asks, and whom.

    Attributes:
        model: a model of this recipe, or any on the disk; it is run in this process.
        endpoint: a model that is served somewhere, in place of `model`.
    """

    model: ModelInput | None = None
    endpoint: Endpoint | None = None

    @model_validator(mode="after")
    def _check_model(self) -> SweInferConfig:
        if (self.model is None) == (self.endpoint is None):
            raise ValueError("give either model or endpoint.")
        return self


class SweEvaluateConfig(InstancesConfig, EvaluateConfig):
    """What the stage `swe_evaluate` judges.

    Attributes:
        patches: a stage `swe_infer`, or a file of patches; without it the reference solutions.
    """

    patches: PatchesInput | None = None


class SweInferResults(Results):
    """What was answered; an answer without a patch counts as empty."""

    model: str
    issues: int
    patches: int
    empty: int


class SweInfer(Stage[SweInferConfig, SweInferResults]):
    """Writes predictions.jsonl; replies are kept, so that only what is missing is asked for again."""

    gives: ClassVar[tuple[type[Artifact], ...]] = (Patches,)

    def depends_on(self, config: SweInferConfig, promised: Mapping[str, Any]) -> Any:
        """The issues."""
        return _described(config)

    def run(self, config: SweInferConfig, context: StageContext) -> SweInferResults:
        """Ask."""
        endpoint = config.endpoint or Endpoint(backend="local", model=str(context.inputs["model"]))
        words = None if config.tokenizer is None else context.find(Vocabulary, "tokenizer").load()
        found = load_chosen(config)
        own = part_of(InferConfig, config)
        workspaces = open_workspaces(config, trees_beside(config.instances))
        predictions = infer(found, workspaces, endpoint, own, context.directory, counter_of(words))
        empty = sum(each.empty for each in predictions)
        return SweInferResults(model=endpoint.model, issues=len(found), patches=len(predictions) - empty, empty=empty)

    def summary(self, results: SweInferResults) -> str:
        """Patches."""
        patches, empty = counted(results.patches, "patches"), counted(results.empty, "answers")
        return f"{patches} for {counted(results.issues, 'issues')}, {empty} without one."


class ResolvedByModel(Results):
    """What one model resolved, with Wilson's interval."""

    model: str
    resolved: int
    total: int
    share: float
    low: float
    high: float
    statuses: dict[str, int]
    page: str


class SweEvaluateResults(Results):
    """A row for each model."""

    models: list[ResolvedByModel]
    isolation: str
    control: bool


class SweEvaluate(Stage[SweEvaluateConfig, SweEvaluateResults]):
    """Writes results, logs, the report in the public layout and a page for each model."""

    def depends_on(self, config: SweEvaluateConfig, promised: Mapping[str, Any]) -> Any:
        """The issues."""
        return _described(config)

    def run(self, config: SweEvaluateConfig, context: StageContext) -> SweEvaluateResults:
        """Judge the patches of each model.

        Raises:
            LmlabError: some have no verdict, as their surroundings failed; the same command tries those again.
        """
        found = load_chosen(config)
        known = {each.instance_id for each in found}
        source: str | Path = GOLD if config.patches is None else context.find(Patches, "patches").path
        every = load_instances(config.instances, config.split)
        models = by_model(each for each in load_predictions(source, every) if each.instance_id in known)
        judge = replace(open_judge(config, trees_beside(config.instances)), full_suite=config.full_suite)
        rows, lost = [], list[str]()
        for name, own in models.items():
            patches, _ = repaired(own, found, judge, config.repair)
            done = evaluate(found, patches, judge, context.directory, _RUN, config.workers, backend=config.backend)
            logs = log_folder(context.directory, _RUN, name)
            page = evaluation_page(done, found, patches, logs).write(done.path.with_suffix(".html"))
            lost += [f"{each} ({result.reason})" for each, result in done.results.items() if result.status == "infra"]
            low, high = done.share.interval.bounds
            rows.append(
                ResolvedByModel(
                    model=name,
                    resolved=done.share.resolved,
                    total=done.share.total,
                    share=done.share.interval.value,
                    low=low,
                    high=high,
                    statuses=done.summary["statuses"],
                    page=page.name,
                )
            )
        if lost:
            shown = "; ".join(lost[:_SHOWN]) + (f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else "")
            raise LmlabError(
                f"No verdict on {counted(len(lost), 'patches')}, as their surroundings failed: {shown}.",
                "The same command tries these again; 'lmlab swe doctor' tells what this machine can do.",
            )
        return SweEvaluateResults(models=rows, isolation=judge.executor.probe().isolation, control=config.control)

    def summary(self, results: SweEvaluateResults) -> str:
        """Resolved issues."""
        return "; ".join(f"{each.model}: {each.resolved} of {each.total} resolved" for each in results.models) + "."

    def headline(self, results: SweEvaluateResults) -> dict[str, str]:
        """The best model's share."""
        best = max(results.models, key=lambda each: each.share)
        return {"Issues resolved": f"{best.resolved} of {best.total}"}

    def report(self, config: SweEvaluateConfig, results: SweEvaluateResults, directory: Path) -> list[Section]:
        """A row for each model, and where its page is."""
        return model_sections(results.to_json())


def _described(config: InstancesConfig) -> Any:
    """What a file of issues holds; a published name stands for itself."""
    path = Path(config.instances)
    if path.is_file():
        return describe(str(path))
    return [[each.name, *describe(str(each))] for each in sorted(path.glob("*")) if each.is_file()]
