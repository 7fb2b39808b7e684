"""The stage `long_evaluate`: a model on long-context tasks, built for its own tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from lmlab.evals import Evaluator
from lmlab.evals.long import SUITE_VERSION, Asking, LongSettings, read_suite_rows
from lmlab.evals.long.texts import origin
from lmlab.methods.prolong.config import LongEvaluateConfig
from lmlab.methods.prolong.evaluate import INSTANCES, evaluate, instances_for
from lmlab.methods.prolong.report import headline, sections
from lmlab.reports import Section
from lmlab.runs import Model, Results, Stage, StageContext


class LongResults(Results):
    """The figures of the suite, as in long.json."""

    model_config = ConfigDict(extra="allow")

    tasks: dict[str, Any]
    categories: dict[str, Any]
    average: dict[str, Any]


class LongEvaluate(Stage[LongEvaluateConfig, LongResults]):
    """Writes instances.jsonl, rows.jsonl and long.json."""

    distributed: ClassVar[bool] = True

    def depends_on(self, config: LongEvaluateConfig, promised: Mapping[str, Any]) -> Any:
        """The version of the suite, and those of the packages with the texts."""
        return {"suite": SUITE_VERSION, **origin()}

    def run(self, config: LongEvaluateConfig, context: StageContext) -> LongResults:
        """Build, measure."""
        evaluator = Evaluator.load(context.find(Model, "model"), config.device, config.precision)
        settings = LongSettings.model_validate({name: getattr(config, name) for name in LongSettings.model_fields})
        asking = Asking(evaluator.tokenizer, config.chat)
        file = instances_for(asking, settings, context.directory / INSTANCES)
        found = evaluate(
            evaluator,
            file,
            context.directory,
            model=str(config.model),
            mode=config.mode,
            chat=config.chat,
            controls=config.controls,
            short_tasks=config.short_tasks,
            short_limit=config.short_limit,
        )
        return LongResults(**found)

    def summary(self, results: LongResults) -> str:
        """The average at each length."""
        return headline(results.model_dump())

    def report(self, config: LongEvaluateConfig, results: LongResults, directory: Path) -> list[Section]:
        """The suite's sections."""
        return sections([results.model_dump()], [read_suite_rows(directory)])
