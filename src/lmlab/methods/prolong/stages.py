"""The stages `long_evaluate`, a model on long-context tasks built for its own tokenizer; `search_rope`, factors of
rotary frequencies for a longer window; and `probe_window`, how well a checkpoint's window can be extended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from lmlab.config import part_of
from lmlab.distributed import wait_for_all
from lmlab.evals import Evaluator
from lmlab.evals.long import SUITE_VERSION, Asking, LongSettings, read_suite_rows
from lmlab.evals.long.texts import origin
from lmlab.methods.prolong.config import FactorConfig, FactorSettings, LongEvaluateConfig, ProbeConfig, ProbeSettings
from lmlab.methods.prolong.evaluate import INSTANCES, evaluate, instances_for, measure_short
from lmlab.methods.prolong.factors import extend_by_search, with_factors
from lmlab.methods.prolong.probe import probe_window
from lmlab.methods.prolong.report import (
    factor_section,
    factor_summary,
    headline,
    probe_section,
    probe_summary,
    sections,
)
from lmlab.methods.prolong.short import ShortCost, require_kept, short_cost
from lmlab.models import ModelConfig
from lmlab.reports import Section
from lmlab.runs import Artifact, Model, Results, Stage, StageContext, Vocabulary


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
        settings = part_of(LongSettings, config)
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
        if config.base is not None:
            del evaluator  # two models need not be in memory at once
            found["short_base"] = self._compare(config, context)
        return LongResults(**found)

    @staticmethod
    def _compare(config: LongEvaluateConfig, context: StageContext) -> dict[str, Any]:
        place = context.directory / "base"
        before = Evaluator.load(context.find(Model, "base"), config.device, config.precision)
        short = measure_short(before, config.short_tasks, config.short_limit, place)
        wait_for_all()
        cost = short_cost(place, context.directory)
        if config.gate:
            require_kept(cost, str(config.model), str(config.base))
        return {"model": str(config.base), "short": short, "cost": None if cost is None else cost.row()}

    def summary(self, results: LongResults) -> str:
        """The average at each length, and what the extension has cost."""
        found = results.model_dump()
        base = found.get("short_base")
        told = f" {ShortCost(**base['cost']).sentence('The model', base['model'])}" if base and base["cost"] else ""
        return headline(found) + told

    def report(self, config: LongEvaluateConfig, results: LongResults, directory: Path) -> list[Section]:
        """The suite's sections."""
        return sections([results.model_dump()], [read_suite_rows(directory)])


class FactorResults(Results):
    """What the search has found, as in factors.json."""

    factors: tuple[float, ...]
    nll: dict[str, float]
    heldout_nll: dict[str, float]
    candidates: int
    from_rule: str | None


class SearchRope(Stage[FactorConfig, FactorResults]):
    """Writes candidates.jsonl, factors.json, and the model with the longer window as model/."""

    gives: ClassVar[tuple[type[Artifact], ...]] = (
        Model,
        Vocabulary,
    )

    def depends_on(self, config: FactorConfig, promised: Mapping[str, Any]) -> Any:
        """The version of the suite, and those of the packages with the texts."""
        return {"suite": SUITE_VERSION, **origin()}

    def promises(self, config: FactorConfig, promised: Mapping[str, Any]) -> ModelConfig | None:
        """The shape of the model, whose factors are not known yet."""
        known = "model" in promised or not Path(config.model).exists()
        shape = promised.get("model") if known else Model.find(config.model).config
        if shape is None or shape.positions != "rotary" or shape.max_seq_len >= config.to:
            return shape
        return with_factors(shape, config.to, (1.0,) * (shape.rotary_dim // 2))

    def run(self, config: FactorConfig, context: StageContext) -> FactorResults:
        """Search, and write the model."""
        settings = part_of(FactorSettings, config)
        place = context.find(Model, "model")
        found = extend_by_search(place, settings, config.device, config.precision, context.directory)
        return FactorResults.model_validate(asdict(found))

    def summary(self, results: FactorResults) -> str:
        """How probable answers become."""
        return factor_summary(results.model_dump())

    def report(self, config: FactorConfig, results: FactorResults, directory: Path) -> list[Section]:
        """The factors beside those of the rules."""
        return [factor_section(results.model_dump())]


class ProbeResults(Results):
    """What a short extension has reached, as in probe.json."""

    model_config = ConfigDict(extra="allow")

    window: tuple[int, int]
    tokens: int
    before: dict[str, Any]
    after: dict[str, Any]
    reached: float


class ProbeWindow(Stage[ProbeConfig, ProbeResults]):
    """Writes before/ and after/, as `long_evaluate` does, train/, settings.json and probe.json."""

    def depends_on(self, config: ProbeConfig, promised: Mapping[str, Any]) -> Any:
        """The version of the suite, and those of the packages with the texts."""
        return {"suite": SUITE_VERSION, **origin()}

    def run(self, config: ProbeConfig, context: StageContext) -> ProbeResults:
        """Measure, extend, measure."""
        place = context.find(Model, "model")
        return ProbeResults(**probe_window(place, part_of(ProbeSettings, config), context.directory, str(config.model)))

    def summary(self, results: ProbeResults) -> str:
        """Recall by length."""
        return probe_summary(results.model_dump())

    def report(self, config: ProbeConfig, results: ProbeResults, directory: Path) -> list[Section]:
        """The table."""
        return [probe_section(results.model_dump())]
