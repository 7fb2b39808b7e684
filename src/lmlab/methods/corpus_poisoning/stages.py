"""A stage of recipes: `poison` crafts passages against a retriever, measures them, and measures what stops them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmlab.errors import UserError
from lmlab.files import describe, find_files
from lmlab.methods.corpus_poisoning.attack.craft import EncoderSpec
from lmlab.methods.corpus_poisoning.attack.run import craft_for
from lmlab.methods.corpus_poisoning.config import PoisonConfig
from lmlab.methods.corpus_poisoning.defend.run import context_of, defended_depths, report_rows
from lmlab.methods.corpus_poisoning.report import build, write
from lmlab.methods.corpus_poisoning.setup import Retriever, Target
from lmlab.reports import Section
from lmlab.retrieval.encoders.load import packaged_directory
from lmlab.runs import Results, Stage, StageContext
from lmlab.words import counted


class PoisonResults(Results):
    """Figures of each attack, and of each defense against it."""

    attacks: list[dict[str, Any]]
    defenses: list[dict[str, Any]]
    depth: str


class Poison(Stage[PoisonConfig, PoisonResults]):
    """Writes the overlays `attack-NAME/`, `report.html`, and vectors in `vectors/`."""

    def depends_on(self, config: PoisonConfig, promised: Mapping[str, Any]) -> Any:
        """The files of the collection, of the sentinels, and of the models."""
        encoder = packaged_directory(config.encoder) or config.encoder
        models = [
            str(place)
            for place in (encoder, config.language_model, config.masked_model)
            if place and Path(place).exists()
        ]
        gates = [str(each.known_gate) for each in config.attacks.values() if each.known_gate is not None]
        places = [config.data, config.sentinels, *models, *gates]
        return [[name, *describe(name)] for place in places for name in find_files(place)]

    def run(self, config: PoisonConfig, context: StageContext) -> PoisonResults:
        """Craft, measure, defend, measure again."""
        retriever = Retriever(
            EncoderSpec(config.encoder, {"device": config.device}), context.directory / "vectors", config.precision
        )
        places = []
        for name, settings in config.attacks.items():
            place = context.directory / f"attack-{name}"
            settings = settings.model_copy(update={"seed": context.seed + settings.seed, "precision": config.precision})
            craft_for(retriever, config.data, config.train_split, settings, place)
            places.append(place)
        target = Target.load(retriever, config.data, config.test_split)
        fitting = [k for k in sorted(set(config.k)) if k <= target.depth()]
        if not fitting:
            raise UserError(f"No k is below the {counted(len(target.data.corpus), 'documents')} of '{config.data}'.")
        sentinels = context_of(target, config)
        attacks, rows = report_rows(
            target, sentinels, places, config.detectors, config.detectors, fitting, config.fusion, config.rate
        )
        write(build(attacks, rows), attacks, rows, context.directory)
        return PoisonResults(attacks=attacks, defenses=rows or [], depth=str(max(defended_depths(fitting))))

    def summary(self, results: PoisonResults) -> str:
        """Success undefended and defended."""
        told = []
        for attack in results.attacks:
            open_ = attack["found"]["asr"][results.depth]
            own = [row for row in results.defenses if row["attack"] == attack["name"] and row["defense"] == "stack"]
            left = own[0]["asr"].get(results.depth) if own else None
            after = "" if left is None else f", {100 * left:.1f} % behind the gate"
            told.append(f"{attack['name']}: ASR@{results.depth} {100 * open_:.1f} %{after}")
        return "; ".join(told) + "."

    def report(self, config: PoisonConfig, results: PoisonResults, directory: Path) -> list[Section]:
        """The sections of the page."""
        return list(build(results.attacks, results.defenses).sections)
