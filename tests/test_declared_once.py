"""A setting is declared once: a field of a configuration, from which recipes, options and help are made.

The rule, over every command: an option that a command declares by hand is no field of a configuration of the same
method (or of the core, for the core's commands) with the same name and type, it does not say what a field or another
option says, and no two commands of a group declare it by hand, each for itself.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import types
from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import typer
from typer.models import OptionInfo

import lmlab
from every_command import commands
from lmlab.config import Config
from lmlab.runs import Results

# What looks like a second declaration and is none: another thing of the same name, with what tells them apart.
OTHER_THINGS = {
    "--out": "each command says what it writes there",
    "--output": "the same, of commands that are spelled as the reference's",
    "--model": "here any place of a model; in a recipe the name of a stage too",
    "--tokenizer": "the same of tokenizers",
    "--data": "here any place of texts, of questions, or of a collection; each command says which",
    "--name": "each command names something else",
    "--n": "of a target of a ladder, or of the reference's tables",
    "--d": "of a target of a ladder, or of a run under way",
}
EXCEPTIONS = {
    ("ask", "--cache"): "a file of replies, not a folder of vectors",
    ("chat", "--system"): "a message of the conversation, not of a judge",
    ("serve", "--key-env"): "the key that requests must bring, not the one that is sent",
    ("convert", "--dtype"): "of files, with the kinds that GGUF has",
    ("run", "--processes"): "of a plan",
    ("train", "--processes"): "of a plan",
    ("data mix-plan", "--tokens"): "of a plan",
    ("data peek", "--samples"): "how many are shown",
    ("launch sweep", "--backend"): "it also writes jobs for Slurm",
    ("retrieval evaluate", "--k"): "several depths",
    ("circuits evaluate", "--metric"): "any figure that was measured, not what a search goes by",
    ("circuits report", "--force"): "compare what was found under different ablations",
    ("compress convert", "--base"): "the model beside which adapters stand",
    ("compress encode", "--in"): "any place of texts",
    ("compress probe", "--tokens"): "of each text",
    ("poison answers", "--k"): "how many results a model reads, not how many passages are made",
    ("poison answers", "--language-model"): "the model that answers, not the one that writes",
    ("poison transfer", "--k"): "a depth, not how many passages are made",
    ("programs verify", "--exhaustive"): "how long sequences are, not how many",
    ("quality select", "--mode"): "it also takes mixture",
    ("swe train-data", "--max-tokens"): "of a whole conversation, not of an answer",
    ("tutor compare", "--judge"): "one, of what is not graded yet; a task is graded by several",
    ("tutor dialogue-eval", "--student"): "a simulated student, who must be named",
    ("tutor generate", "--new-run"): "it moves answers aside",
    ("tutor dialogue-eval", "--new-run"): "it moves conversations aside, as generate does answers",
    ("tutor grade", "--new-run"): "it lets another judge grade",
}


@dataclass(frozen=True)
class Option:
    """An option that a command declares by hand."""

    command: str
    name: str
    flag: str
    module: str
    kind: Any
    default: Any
    help: str
    declared: int

    @property
    def package(self) -> str:
        return _package(self.module)

    @property
    def group(self) -> str:
        return self.command.split()[0]


def _package(module: str) -> str:
    """The method that a module belongs to, or the core."""
    parts = module.split(".")
    return ".".join(parts[:3]) if parts[1] == "methods" else "the core"


def _kind(annotation: Any) -> Any:
    """What a command line would read for a type: None and limits left out, paths and choices as text."""
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = {_kind(each) for each in get_args(annotation) if each is not type(None)}
        return kinds.pop() if len(kinds) == 1 else None
    if get_origin(annotation) is Literal or getattr(annotation, "__name__", "") == "Path":
        return str
    if get_origin(annotation) in (list, tuple):
        return list
    return annotation


def _said(text: str | None) -> str:
    return " ".join((text or "").lower().replace("`", "").rstrip(".").split())


@pytest.fixture(scope="module")
def configurations() -> list[type[Config]]:
    for found in pkgutil.walk_packages(lmlab.__path__, "lmlab."):
        if not found.name.endswith(("__main__", "in_sandbox")):  # which run when they are imported
            importlib.import_module(found.name)
    every: set[type[Config]] = set()
    waiting = [Config]
    while waiting:
        each = waiting.pop()
        fresh = set(each.__subclasses__()) - every
        every |= fresh
        waiting += fresh
    return [
        each
        for each in every
        if each.__module__.startswith("lmlab.") and not each.__name__.startswith("_") and not issubclass(each, Results)
    ]


@pytest.fixture(scope="module")
def by_hand() -> list[Option]:
    found = []
    for path, command in commands():
        function = inspect.unwrap(command.callback)
        for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
            for info in get_args(parameter.annotation)[1:]:
                if isinstance(info, OptionInfo):
                    spelled = (info.default, *(info.param_decls or ()))  # typer takes the first one for a default
                    flag = next((each for each in spelled if isinstance(each, str) and each.startswith("--")), None)
                    flag = (flag or f"--{name.strip('_').replace('_', '-')}").partition("/")[0]
                    kind = _kind(parameter.annotation)
                    default = parameter.default
                    said = _said(info.help)
                    found.append(Option(path, name, flag, function.__module__, kind, default, said, id(info)))
    return found


def _unexplained(problems: dict[tuple[str, str], str]) -> str:
    left = {key: why for key, why in problems.items() if key not in EXCEPTIONS and key[1] not in OTHER_THINGS}
    return "\n".join(sorted(f"{command} {flag}: {why}" for (command, flag), why in left.items()))


Problems = dict[tuple[str, str], str]


@pytest.fixture(scope="module")
def declared_twice(configurations, by_hand) -> Problems:
    """Options by hand that are fields of a configuration of the same package."""
    fields = defaultdict(list)
    for each in configurations:
        for name in inspect.get_annotations(each):
            if name in each.model_fields:
                fields[name, _kind(each.model_fields[name].annotation)].append(each)
    return {
        (option.command, option.flag): f"{each.__name__}.{name} declares it"
        for option in by_hand
        for name in {option.name, option.flag[2:].replace("-", "_")}
        for each in fields[name, option.kind]
        if _package(each.__module__) == option.package
    }


@pytest.fixture(scope="module")
def said_twice(configurations, by_hand) -> Problems:
    """Options by hand that say what a field, or another one, says."""
    told, places = defaultdict(set), defaultdict(set)
    for each in configurations:
        for name, info in each.model_fields.items():
            told[_said(info.description)].add(f"{each.__name__}.{name}")
    for option in by_hand:
        places[option.help].add(option.declared)
    return {
        (option.command, option.flag): f"'{option.help}' is said elsewhere too: {sorted(told[option.help])[:2]}"
        for option in by_hand
        if option.help and (told.get(option.help) or len(places[option.help]) > 1)
    }


@pytest.fixture(scope="module")
def twice_in_a_group(by_hand) -> Problems:
    """Options by hand that two commands of a group declare, each for itself."""
    groups = defaultdict(list)
    for option in by_hand:
        groups[option.group, option.flag, option.kind, repr(option.default)].append(option)
    return {
        (option.command, option.flag): f"declared {len({each.declared for each in same})} times in the group"
        for same in groups.values()
        if len({each.declared for each in same}) > 1
        for option in same
    }


def test_no_option_is_written_by_hand_that_a_configuration_declares(declared_twice):
    assert not (left := _unexplained(declared_twice)), f"make it from the configuration, with `options`:\n{left}"


def test_no_two_declarations_say_the_same(said_twice):
    assert not (left := _unexplained(said_twice)), f"declare it once, and use it in both places:\n{left}"


def test_commands_of_a_group_share_their_options(twice_in_a_group):
    assert not (left := _unexplained(twice_in_a_group)), f"declare it once for all of them:\n{left}"


def test_exceptions_are_still_needed(declared_twice, said_twice, twice_in_a_group):
    needed = {*declared_twice, *said_twice, *twice_in_a_group}
    assert set(EXCEPTIONS) <= needed
    assert set(OTHER_THINGS) <= {flag for _, flag in needed}


# Where a field says on what, and how exactly, something is computed: each of these is another thing
DECLARED = {
    "device": {"OnDevice"},
    "precision": {
        "Loading",
        "MeasuringOptions",  # auto by default
        "TrainerConfig", "ProbeSettings",  # of what is computed; the weights stay fp32
        "Endpoint", "AnswerConfig", "RatingOptions",  # weights that are not packed
        "Encoding", "PoisonConfig",  # of vectors, which have no faster of two
        "CraftConfig",  # of the ranking of candidates
    },
}  # fmt: skip


@pytest.mark.parametrize("name", DECLARED)
def test_device_and_precision_are_inherited(name, configurations):
    found = {each.__name__ for each in configurations if name in inspect.get_annotations(each)}
    assert found == DECLARED[name]


def test_a_second_declaration_is_found(configurations):
    """The rule sees what it is to see: an option as this one was is one too many."""
    app = typer.Typer()

    @app.command()
    def train(epochs: Annotated[float, typer.Option(help="Passes.")] = 2.0) -> None:
        """Train."""

    owners = [each.__name__ for each in configurations if "epochs" in inspect.get_annotations(each)]
    assert "RaterConfig" in owners
    assert _kind(inspect.signature(train, eval_str=True).parameters["epochs"].annotation) is float
