"""Stages of recipes: `train_program` trains the seeds of a shape, exports the best one's program and checks it;
`decompile` reads a small language model as a program of averages.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, PositiveInt

from lmlab.config import part_of
from lmlab.files import describe
from lmlab.methods.transformer_programs.analysis.export import export_program
from lmlab.methods.transformer_programs.config import (
    DECOMPILED_ON,
    DecompileConfig,
    ExportOptions,
    MinimizeConfig,
    SequencesConfig,
    TrainSettings,
)
from lmlab.methods.transformer_programs.decompile.files import PYTHON, write_decompiled
from lmlab.methods.transformer_programs.program.files import StoredProgram, load_program
from lmlab.methods.transformer_programs.report import decompiled_section, training_sections
from lmlab.methods.transformer_programs.tasks.load import about_data, load_data
from lmlab.methods.transformer_programs.training.run import REJECTS, TrainedNetworks, train
from lmlab.reports import Section
from lmlab.runs import Artifact, Model, ModelInput, Results, Stage, StageContext
from lmlab.runs.stage import InputMarker

PROGRAM_DIRECTORY = "program"


class TrainProgramConfig(TrainSettings, MinimizeConfig):
    """What is trained, and what is made of it.

    Attributes:
        start: a program that all seeds go on from, such as one that was edited: a stage that has one, or a path; its
            shape is theirs.
        export: write the program of the best seed.
    """

    start: Annotated[str, InputMarker(StoredProgram)] | None = None
    export: bool = True


class TrainProgramResults(Results):
    """Accuracies of the best seed, a row for each seed, and what the program is."""

    model_config = ConfigDict(extra="allow")

    best_seed: int
    valid_accuracy: float
    test_accuracy: float | None = None
    majority: float
    plateau: bool
    near_best: int | None = None
    soft_gap: float | None = None
    seeds: list[dict[str, Any]]
    curves: list[dict[str, Any]]
    program: dict[str, Any] | None = None


class TrainProgram(Stage[TrainProgramConfig, TrainProgramResults]):
    """Writes network.json, checkpoints and program/."""

    gives: ClassVar[tuple[type[Artifact], ...]] = (StoredProgram,)

    def run(self, config: TrainProgramConfig, context: StageContext) -> TrainProgramResults:
        """Train, from the newest checkpoint if there is one, then export."""
        settings = part_of(TrainSettings, config)
        if config.start is not None:
            settings = settings.model_copy(update={"start": str(context.find(StoredProgram, "start").path)})
        data = load_data(settings, context.directory / REJECTS)
        results = train(settings, context.directory, context.seed, data)
        manifest = None
        if config.export:
            networks = TrainedNetworks.find(context.directory)
            options = ExportOptions(minimize=config.minimize, max_accuracy_drop=config.max_accuracy_drop)
            manifest = export_program(
                networks.load(), networks.place_of(None), data, context.directory / PROGRAM_DIRECTORY,
                options, about_data(settings),
            )  # fmt: skip
        return TrainProgramResults(**results, program=manifest)

    def depends_on(self, config: TrainProgramConfig, promised: Mapping[str, Any]) -> Any:
        """The files that are read."""
        return _described(config.data, config.valid, config.test)

    def plan(self, config: TrainProgramConfig, promised: Mapping[str, Any]) -> dict[str, str]:
        """What would be trained."""
        heads, mlps = f"{config.cat_heads}+{config.num_heads} heads", f"{config.cat_mlps}+{config.num_mlps} MLPs"
        shape = f"on from {config.start}" if config.start else f"{config.num_layers} layers, {heads}, {mlps}"
        return {"program": f"{config.task or config.data}: {shape}, {config.seeds} seeds, {config.epochs:g} epochs"}

    def summary(self, results: TrainProgramResults) -> str:
        """The best seed, beside the most common answer."""
        place = "test" if results.test_accuracy is not None else "validation"
        best = results.valid_accuracy if results.test_accuracy is None else results.test_accuracy
        text = (
            f"Best of {len(results.seeds)} seeds (seed {results.best_seed}): {100 * best:.2f} % on {place}, most common"
            f" answer {100 * results.majority:.1f} %."
        )
        if results.near_best is not None:
            text += f" {results.near_best} of {len(results.seeds)} seeds are within a point of the best."
        if results.soft_gap is not None:
            text += f" Trained minus program, before polishing: {100 * results.soft_gap:.2f} points."
        if results.plateau:
            text += " ALL SEEDS ARE ON A PLATEAU: try more seeds, more heads or more epochs."
        if results.program is not None:
            checked = results.program["verification"]
            text += f" Program and model agree on {checked['places']:,} places."
        return text

    def headline(self, results: TrainProgramResults) -> dict[str, str]:
        """The accuracy of the program."""
        best = results.valid_accuracy if results.test_accuracy is None else results.test_accuracy
        return {"Accuracy of the program": f"{100 * best:.2f} %"}

    def report(self, config: TrainProgramConfig, results: TrainProgramResults, directory: Path) -> list[Section]:
        """Seeds, curves and the program's text."""
        path = directory / PROGRAM_DIRECTORY
        program = load_program(path) if results.program is not None else None
        return training_sections(results.model_dump(), program)


class DecompileStageConfig(DecompileConfig, SequencesConfig):
    """Which model is read, on which sequences.

    Attributes:
        model: a small language model.
        examples: at most so many sequences.
    """

    model: ModelInput
    examples: PositiveInt = DECOMPILED_ON


class DecompileResults(Results):
    """How far program and model answer alike, and how long the program is.

    Attributes:
        match, whole_sequences: the shares of places and of sequences, of those held back.
        paths: maps of the model as it is written out, behind open gates, and left.
        tests: figures of each file of further sequences.
    """

    match: float
    whole_sequences: float
    lines: int
    paths: dict[str, int]
    cpu_seconds: float
    tests: dict[str, dict[str, float]]


class Decompile(Stage[DecompileStageConfig, DecompileResults]):
    """Writes program/."""

    def run(self, config: DecompileStageConfig, context: StageContext) -> DecompileResults:
        """Read the model."""
        given, how = part_of(SequencesConfig, config), part_of(DecompileConfig, config)
        manifest = write_decompiled(context.find(Model, "model"), given, how, context.directory / PROGRAM_DIRECTORY)
        return DecompileResults(**{name: manifest[name] for name in DecompileResults.model_fields})

    def depends_on(self, config: DecompileStageConfig, promised: Mapping[str, Any]) -> Any:
        """The files that are read."""
        return _described(config.data, *config.test)

    def plan(self, config: DecompileStageConfig, promised: Mapping[str, Any]) -> dict[str, str]:
        """What would be read."""
        return {"program": f"{config.model} on {config.task or config.data}, {config.steps} steps"}

    def summary(self, results: DecompileResults) -> str:
        """How far the two answer alike."""
        return (
            f"{results.paths['written']} paths became {results.paths['left']} in a program of {results.lines} lines;"
            f" it answers as the model does at {100 * results.match:.2f} % of places held back."
        )

    def headline(self, results: DecompileResults) -> dict[str, str]:
        """The share of answers."""
        return {"Program answers as its model": f"{100 * results.match:.2f} %"}

    def report(self, config: DecompileStageConfig, results: DecompileResults, directory: Path) -> list[Section]:
        """The figures and the program's text."""
        text = (directory / PROGRAM_DIRECTORY / PYTHON).read_text("utf-8")
        return [decompiled_section(results.model_dump(), text)]


def _described(*paths: str | None) -> dict[str, Any]:
    return {path: describe(path) for path in paths if path and Path(path).is_file()}
