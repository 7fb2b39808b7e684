"""A stage: one step of a recipe, with a configuration, inputs, an output directory, and a section of the report.

Stages are found by `lmlab.plugins`, so that methods (and other packages) add their own without touching the core.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, TypeVar, get_args

from lmlab import plugins
from lmlab.config import Config, field_marks
from lmlab.files import read_json, write_json
from lmlab.runs.artifacts import Artifact, Documents, Model, Questions, Tokens, Vocabulary
from lmlab.runs.record import Results, StageRecord

if TYPE_CHECKING:
    from lmlab.reports import Section  # configurations, which help reads, need no pages


@dataclass(frozen=True)
class InputMarker:
    """Marks a field, in `Annotated`, as an input, and says what is looked for there."""

    artifact: type[Artifact] | None = None


Input = Annotated[str, InputMarker()]
"""A field that names an earlier stage of the recipe, or else is a path."""

ModelInput = Annotated[str, InputMarker(Model)]
"""An input where a model is looked for: a stage that has one, or whatever `Model.find` takes."""

DocumentsInput = Annotated[str, InputMarker(Documents)]
"""An input where documents are looked for."""

TokensInput = Annotated[str, InputMarker(Tokens)]
"""An input where tokenized text is looked for."""

VocabularyInput = Annotated[str, InputMarker(Vocabulary)]
"""An input where a tokenizer is looked for."""

QuestionsInput = Annotated[str, InputMarker(Questions)]
"""An input where ranked questions are looked for."""


C = TypeVar("C", bound=Config)
R = TypeVar("R", bound=Results)
A = TypeVar("A", bound=Artifact)


@dataclass(frozen=True)
class StageContext:
    """What a running stage is given.

    Attributes:
        directory: where it writes.
        inputs: the path behind each `Input` field: an earlier stage's directory, or a path of the user's.
        seed: the recipe's seed.
        run: the run's directory.
        stages: names, kinds, configurations and directories of the stages before it, in order.
    """

    directory: Path
    inputs: Mapping[str, Path]
    seed: int
    run: Path
    stages: Mapping[str, Any] = field(default_factory=dict)

    def find(self, kind: type[A], field: str) -> A:
        """What stands behind an input, such as `context.find(Model, "model")`.

        Raises:
            UserError: there is nothing of this kind.
        """
        return kind.find(self.inputs[field])

    def results_of(self, field: str, kind: type[R]) -> R:
        """The results of the finished stage behind an input."""
        return StageRecord.finished_in(self.inputs[field]).read_results(kind)

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """Compute a JSON value, or read it if an earlier attempt of this stage already did."""
        path = self.directory / "parts" / f"{name}.json"
        if path.exists():
            return read_json(path)
        value = compute()
        write_json(path, value)
        return value


class Stage(ABC, Generic[C, R]):
    """One kind of stage, `Stage[its configuration, its results]`.

    Class attributes:
        config_type, results_type: the two, taken from the base class as it is written; `Input` fields of the
            configuration are the stage's inputs.
        gives: what later stages find in its directory.
        version: raised when the same configuration gives another result.
        reads_all_stages: it summarizes all stages before it, and is simply run again when one of them has changed.
        distributed: all processes of the job run it together; the others are run by the main process while the rest
            wait.
    """

    config_type: ClassVar[type[Config]]
    results_type: ClassVar[type[Results]]
    gives: ClassVar[tuple[type[Artifact], ...]] = ()
    version: ClassVar[int] = 1
    reads_all_stages: ClassVar[bool] = False
    distributed: ClassVar[bool] = False

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for base in getattr(cls, "__orig_bases__", ()):
            for kind in get_args(base):
                if isinstance(kind, type) and issubclass(kind, Config):
                    cls.config_type = kind
                elif isinstance(kind, type) and issubclass(kind, Results):
                    cls.results_type = kind

    @abstractmethod
    def run(self, config: C, context: StageContext) -> R:
        """Do the work, resuming what an earlier attempt left in the directory."""

    def plan(self, config: C, promised: Mapping[str, Any]) -> dict[str, str]:
        """What the stage will do, for `--dry-run`: label -> text.

        Arguments:
            promised: of each input that an earlier stage will make, by its field, what that stage `promises`.
        """
        return {}

    def promises(self, config: C, promised: Mapping[str, Any]) -> Any:
        """What is known of the results before there are any, for the plans of later stages: of a stage that trains, the
        shape of its model; None elsewhere.
        """
        return None

    def depends_on(self, config: C, promised: Mapping[str, Any]) -> Any:
        """Whatever else the results depend on (files that are read), for JSON.

        Arguments:
            promised: as in `plan`.
        """
        return None

    def continues(self, config: C, before: Mapping[str, Any], finished: bool, directory: Path) -> str | None:
        """Whether what an attempt with another configuration left can be gone on with: a sentence that says how, or
        None where the stage has to begin anew.

        Arguments:
            before: the earlier configuration (`influences`).
            finished: it was done.
            directory: where its work is.

        Raises:
            UserError: going on would change what was done; the remedy says which setting allows it.
        """
        return None

    def summary(self, results: R) -> str:
        """One line for the terminal."""
        return ""

    def headline(self, results: R) -> dict[str, str]:
        """The figures for the top of the report: label -> value."""
        return {}

    def report(self, config: C, results: R, directory: Path) -> list[Section]:
        """Sections for the run's report."""
        return []


def find_stage(kind: str, where: str) -> Stage[Any, Any]:
    """The stage called `kind`; an unknown one is a `UserError` with the nearest name."""
    stage: Stage[Any, Any] = plugins.find("stages", kind, "kind of stage", where)()
    return stage


@dataclass(frozen=True)
class InputField:
    """An input that is set: the name of an earlier stage or a path, and what is looked for there."""

    value: str
    artifact: type[Artifact] | None


def input_fields(config: Config) -> dict[str, InputField]:
    """The stage's inputs that are set, at any depth, by their dotted fields."""
    found: dict[str, InputField] = {}
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        marks = [mark for mark in field_marks(info) if isinstance(mark, InputMarker)]
        if isinstance(value, str) and marks:
            found[name] = InputField(value, marks[0].artifact)
        else:
            found |= {f"{name}.{inner}": each for inner, each in _nested_inputs(value).items()}
    return found


def _nested_inputs(value: Any) -> dict[str, InputField]:
    if isinstance(value, Config):
        return input_fields(value)
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {f"{name}.{inner}": each for name, part in parts for inner, each in _nested_inputs(part).items()}
