"""What needs no method: write, answer, measure, train, run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmlab.door import arguments
from lmlab.door.calls import HERE, told
from lmlab.door.model import LanguageModel, loaded

if TYPE_CHECKING:
    from lmlab.stages.parts.evaluate_report import EvaluateResults


@told
def generate(model: LanguageModel | str | Path, prompt: str, **settings: Any) -> str:
    """Continue a text: `LanguageModel.generate` of a model by its place. Load it once to use it more than once."""
    return loaded(model).generate(prompt, **settings)


@told
def chat(model: LanguageModel | str | Path, messages: str | Sequence[Mapping[str, str]], **settings: Any) -> str:
    """Answer a message or a conversation: `LanguageModel.chat` of a model by its place."""
    return loaded(model).chat(messages, **settings)


@told
def evaluate(
    model: LanguageModel | str | Path,
    tasks: str | Sequence[str] = (),
    *,
    documents: str | Path | None = None,
    questions: str | Path | None = None,
    out: str | Path | None = None,
    redo: bool = False,
    **settings: Any,
) -> EvaluateResults:
    """Measure a model, as `lmlab eval` does: the same run directory, rows and report, and its figures returned.

    Arguments:
        model: by its place; one that was loaded is read from there again, in its precision.
        tasks: names, groups or YAML files, in a list or with commas between them; `lmlab eval tasks` lists them.
        documents: to measure bits per byte on: JSON lines with a `text` each.
        questions: a file of ranked questions.
        settings: further ones of the stage `evaluate`, such as `limit=200` or `too_long="truncate"`.

    Raises:
        UserError: there is nothing to measure, something is not there, or the weights of a loaded model are no longer
            those of its place.
    """
    from lmlab.commands.evaluation import run_evaluation
    from lmlab.runs import StageRecord
    from lmlab.stages.parts.evaluate_report import EvaluateResults

    further = {
        "documents": arguments.place_or_none(documents, "documents"),
        "task": arguments.place_or_none(questions, "questions"),
        **arguments.plain(settings),
    }
    if isinstance(model, LanguageModel):
        place, further = model._as_stored(), {"precision": model.precision, **further}
    else:
        place = arguments.place(model, "model")
    directory = arguments.place_or_none(out, "out")
    found = run_evaluation([place], arguments.words(tasks, "tasks"), further, directory, False, bool(redo), HERE)
    return StageRecord.finished_in(found[0]).read_results(EvaluateResults)


@told
def train_model(
    config: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    overrides: str | Sequence[str] = (),
    redo: bool = False,
) -> Path:
    """Train a language model, as `lmlab train` does; the directory of its run, which `load` takes.

    Arguments:
        config: a YAML file or a mapping: tokens, tokenizer, model, seq_len, trainer; see the stage `train`.
        out: the run's directory, by default below `runs/`.
        overrides: `key=value`, as behind `--set`.
        redo: train again where the configuration has changed.

    Raises:
        UserError: a setting is wrong, or the text is not there.
    """
    from lmlab.commandline.options import run_stages
    from lmlab.commands.recipes import train_stages

    given = arguments.plain(config) if isinstance(config, Mapping) else arguments.place(config, "config")
    name, stages, seed = train_stages(given, arguments.texts(overrides, "overrides"))
    return run_stages(name, stages, arguments.place_or_none(out, "out"), None, False, bool(redo), seed, HERE)


@told
def run(
    recipe: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    overrides: str | Sequence[str] = (),
    redo: bool = False,
) -> Path:
    """Run a recipe, as `lmlab run` does: finished stages are skipped. The directory of the run.

    Arguments:
        recipe: a YAML file, or what one holds: name, seed, stages.
        out: the run's directory, by default below `runs/`.
        overrides: `STAGE.key=value`, as behind `--set`.
        redo: run changed stages again; what they wrote before is moved aside.

    Raises:
        UserError: the recipe is wrong; the field is named.
    """
    from lmlab.commandline.options import execute
    from lmlab.runs import Recipe

    given = arguments.plain(recipe) if isinstance(recipe, Mapping) else arguments.place(recipe, "recipe")
    loaded = Recipe.load(given, arguments.texts(overrides, "overrides"))
    return execute(loaded, arguments.place_or_none(out, "out"), False, bool(redo))
