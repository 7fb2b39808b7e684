"""The list of commands and the help of each: what they load, how long they take, and where options come from."""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
from typing import Annotated, Any

import pytest
import typer
from pydantic import Field, JsonValue, model_validator
from typer.testing import CliRunner

from lmlab import cli, plugins
from lmlab.commandline.from_config import changes, options
from lmlab.config import Config, Flag
from lmlab.endpoints import Price
from lmlab.errors import UserError

HEAVY = ("torch", "scipy", "numpy", "pandas", "transformers", "pyarrow", "sklearn", "grain")
MODULES_OF = """
import json, sys
sys.argv = ["lmlab", *sys.argv[1:]]
from lmlab.cli import app
try:
    app(standalone_mode=False)
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
HELP_SECONDS, LIBRARY_SECONDS = 0.4, 0.12
HELPS = [[], *([name] for name in cli._groups()), ["generate"], ["train"]]


@pytest.mark.parametrize("arguments", HELPS, ids=str)
def test_help_loads_no_library_that_computes(arguments):
    shown = subprocess.run(
        [sys.executable, "-c", MODULES_OF, *arguments, "--help"], capture_output=True, text=True, check=True
    )
    assert "Usage" in shown.stdout and "-completion" not in shown.stdout
    loaded = set(json.loads(shown.stderr.splitlines()[-1]))
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("arguments", HELPS, ids=str)
def test_help_answers_at_once(arguments):
    """In processor time, the least of three. Cores that share their caches with other work are slower: so the library
    that prints help, whose time on an idle core is known, is timed beside it.
    """

    def seconds(*of_python: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *of_python], stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def slowness() -> float:
        return max(1.0, seconds("-c", "import typer.rich_utils") / LIBRARY_SECONDS)

    assert any(seconds("-m", "lmlab", *arguments, "--help") < HELP_SECONDS * slowness() for _ in range(3))


def test_every_command_of_the_core_is_listed():
    for module, names in cli._ALONE.items():
        found = cli._commands_in(module)
        assert {name: " ".join(each.help.split("\n\n")[0].split()) for name, each in found.items()} == names


def test_a_slip_in_the_name_of_a_command_or_group_is_answered_by_the_nearest():
    for slip, meant in (("evl", "eval"), ("tran", "train"), ("qualty", "quality")):
        result = CliRunner().invoke(cli.app, [slip])
        assert result.exit_code == 2 and f"Did you mean '{meant}'?" in result.output


def test_a_method_is_listed_by_its_manifest_and_every_name_in_it_leads_somewhere():
    for method in plugins.methods().values():
        assert isinstance(plugins.load(method.cli), typer.Typer)
        for group in ("stages", "sources", "tasks", "judges", "detectors"):
            for name, place in getattr(method, group).items():
                assert plugins.find(group, name, "kind", "the test") is plugins.load(place)


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match=r"mine\.yaml: unknown kind of stage 'trian'\. Did you mean 'train'\?"):
        plugins.find("stages", "trian", "kind of stage", "mine.yaml")


def test_a_name_that_two_packages_offer_is_refused(monkeypatch):
    method = next(iter(plugins.methods().values()))
    other = dataclasses.replace(method, command="other", stages={"train": "elsewhere:Train"})
    monkeypatch.setattr(plugins, "methods", lambda: {"other": other})
    plugins.places.cache_clear()
    try:
        with pytest.raises(UserError, match="offer the name in 'stages' 'train': 'lmlab.stages.train:Train' and 'els"):
            plugins.find("stages", "train", "kind of stage", "mine.yaml")
        same = {name: place for name, place in method.stages.items()}
        monkeypatch.setattr(plugins, "methods", lambda: {"a": method, "b": dataclasses.replace(method, stages=same)})
        plugins.places.cache_clear()
        assert "train" in plugins.known("stages")  # installed twice, it is the same
    finally:
        plugins.places.cache_clear()


def test_a_method_that_cannot_be_loaded_is_left_out_and_named(monkeypatch, caplog):
    points = [("ladder", "lmlab.methods.ladder.method:METHOD"), ("mine", "mine.method:METHOD")]
    monkeypatch.setattr(plugins, "_points", lambda group: points)
    plugins.methods.cache_clear()
    try:
        assert list(plugins.methods()) == ["ladder"]
        assert "The method 'mine' is left out: 'mine.method:METHOD' cannot be loaded" in caplog.text
    finally:
        plugins.methods.cache_clear()


def test_a_method_cannot_take_a_command_of_the_core(monkeypatch):
    method = next(iter(plugins.methods().values()))
    monkeypatch.setattr(cli, "_methods", lambda: {"run": method})
    result = CliRunner().invoke(cli.app, ["run", "x.yaml"])
    assert isinstance(result.exception, UserError) and "a command of the core, 'run'" in str(result.exception)


class Settings(Config):
    """Of a command.

    Attributes:
        size: how large,
            in meters.
        share, weight: two numbers.
        names: of things.
    """

    size: int = Field(ge=1)
    share: float = 0.5
    weight: float | None = None
    names: Annotated[tuple[str, ...], Flag(("--name", "-n"))] = ()
    bounds: dict[str, float] = Field(default={})
    quiet: bool = False
    whole: bool = True


def run(*arguments: str) -> tuple[int, str, Settings | None]:
    found: list[Settings] = []
    application = typer.Typer()

    @application.command()
    @options(Settings)
    def command(place: str, settings: Settings, out: str = "here") -> None:
        found.append(settings)

    done = CliRunner(env={"COLUMNS": "200"}).invoke(application, list(arguments))
    if isinstance(done.exception, UserError):
        raise done.exception
    return done.exit_code, done.output, found[0] if found else None


def test_options_are_the_fields_of_a_configuration():
    _, _, settings = run("x", "--size", "3", "-n", "a", "--name", "b", "--bounds", "low=1,high=2.5", "--no-whole")
    expected = {"size": 3, "names": ("a", "b"), "bounds": {"low": 1.0, "high": 2.5}, "whole": False}
    assert settings == Settings.model_validate(expected)


def test_help_of_options_is_what_the_docstring_says():
    code, shown, _ = run("--help")
    said = " ".join(shown.replace("│", " ").split())
    assert code == 0 and "How large, in meters." in said and said.count("Two numbers.") == 2
    assert "--no-whole" in said and "--no-quiet" not in said


def test_values_in_a_help_text_are_spelled_as_they_are_typed():
    from every_command import commands

    spelled = []
    for path, command in commands():
        for each in command.params:
            first = (getattr(each, "help", None) or "").split(" ")[0].rstrip(",")
            if first[:1].isupper() and first.lower() in (
                "edge-pruning",
                "multiflip",
                "auto",
                "bubblewrap",
                "bm25",
                "hf",
            ):
                spelled.append((path, each.name, first))
    assert not spelled


def test_wrong_options_are_one_sentence():
    assert run("x")[0] == 2  # size is required
    assert run("x", "--size", "0")[0] == 2  # below its bound
    with pytest.raises(UserError, match=r"--bounds low: expected NAME=NUMBER"):
        run("x", "--size", "1", "--bounds", "low")
    with pytest.raises(UserError, match=r"the options: bounds\.low"):
        run("x", "--size", "1", "--bounds", "low=much")


class Weighted(Config):
    """Weights.

    Attributes:
        weights: of each kind.
    """

    weights: dict[str, float] = {"a": 1.0, "b": 0.5}


def test_a_mapping_that_is_not_empty_by_default_may_be_left_out():
    app, seen = typer.Typer(), []

    @app.command()
    @options(Weighted)
    def weigh(settings: Weighted) -> None:
        seen.append(settings.weights)

    for arguments in ([], ["--weights", "c=2"]):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert seen == [{"a": 1.0, "b": 0.5}, {"c": 2.0}]


class Sized(Config):
    """Sizes.

    Attributes:
        sizes: of each part.
        share: of the whole.
        loud: tell everything.
    """

    sizes: tuple[int, ...] = (2, 3)
    share: float = 0.5
    loud: bool = False
    names: tuple[str, ...] = ()


def _invoke(decorator, *arguments):
    app, seen = typer.Typer(), []

    @app.command()
    @decorator
    def measure(found: object) -> None:
        seen.append(found)

    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, list(arguments), catch_exceptions=False)
    return done.output, seen


def test_numbers_may_stand_in_one_word_and_texts_may_hold_commas():
    decorator = options(Sized, "found")
    assert _invoke(decorator)[1] == [Sized()]
    arguments = ("--sizes", "4,5", "--sizes", "6", "--names", "a,b")
    assert _invoke(decorator, *arguments)[1] == [Sized(sizes=(4, 5, 6), names=("a,b",))]
    assert "[default: (2,3)]" in _invoke(decorator, "--help")[0]


def test_options_that_change_a_file_say_only_what_was_given():
    decorator = changes(Sized, ("sizes", "share", "loud"), "found")
    assert _invoke(decorator)[1] == [{}]
    given = _invoke(decorator, "--share", "0.25", "--sizes", "7", "--no-loud")[1]
    assert given == [{"share": 0.25, "sizes": ["7"], "loud": False}]
    shown = _invoke(decorator, "--help")[0]
    assert "Of the whole." in shown and "default" not in shown and "--names" not in shown


def test_a_command_may_have_several_configurations():
    app, seen = typer.Typer(), []

    @app.command()
    @options(Sized, "sizes", exclude=("names",))
    @options(Weighted, "weighted")
    def measure(sizes: Sized, weighted: Weighted, last: str = "z") -> None:
        seen.append((sizes, weighted, last))

    CliRunner().invoke(app, ["--share", "1", "--weights", "a=3", "--last", "y"], catch_exceptions=False)
    assert seen == [(Sized(share=1.0), Weighted(weights={"a": 3.0}), "y")]


class Demanding(Config):
    """Several fields that hold together.

    Attributes:
        first: a number.
        second: another one.
        third: one that must be given.
    """

    first: int | None = Field(default=None, ge=1)
    second: int | None = None
    third: list[int]

    @model_validator(mode="after")
    def _check(self) -> Demanding:
        if (self.first is None) == (self.second is None) or not len(self.third):
            raise ValueError("give either first or second.")
        return self


def called(decorate, *arguments):
    """What a command with these options receives."""
    found, application = [], typer.Typer()

    @application.command()
    @decorate
    def command(settings: Any) -> None:
        found.append(settings)

    done = CliRunner(env={"COLUMNS": "200"}).invoke(application, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return found[0] if found else done.output


def test_some_fields_of_a_configuration_are_asked_for_nothing_that_the_whole_demands():
    some = options(Demanding, only=("first",), notes={"first": "Here of things."})
    assert called(some).first is None and called(some, "--first", "3").first == 3
    said = " ".join(called(some, "--help").replace("│", " ").split())
    assert "A number. Here of things." in said and "--second" not in said
    assert "'--first'" in called(some, "--first", "0")
    with pytest.raises(UserError, match="give either first or second"):
        called(options(Demanding, third=[1]))


def test_changes_are_those_that_were_given():
    some = changes(Demanding, ("first", "third"), "settings")
    assert called(some) == {} and called(some, "--third", "1,2") == {"third": ["1", "2"]}


class Sent(Config):
    """What is sent.

    Attributes:
        headers: further ones.
        body: further fields.
        price: of the tokens.
    """

    headers: Annotated[dict[str, str], Flag(("--header",))] = Field(default={})
    body: dict[str, JsonValue] = Field(default={})
    price: Price | None = None


def test_texts_and_json_by_name_hold_commas_and_equals():
    asked = (
        "--header",
        "Accept=text/html, a=b",
        "--header",
        "X=1",
        "--body",
        'stop=["a","b=c"]',
        "--body",
        "mode=fast",
    )
    found = called(options(Sent), *asked, "--price", "0.15,0.6")
    assert found.headers == {"Accept": "text/html, a=b", "X": "1"}
    assert found.body == {"stop": ["a", "b=c"], "mode": "fast"}
    assert (found.price.prompt, found.price.completion) == (0.15, 0.6)
    assert "PROMPT,COMPLETION" in called(options(Sent), "--help")
    for wrong in ("0.15", "a,b", "1,2,3", "-1,2"):
        with pytest.raises(UserError, match="price"):
            called(options(Sent), "--price", wrong)


def test_warnings_are_sentences_for_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    from pathlib import Path

    from lmlab import cli

    ours = str(Path(cli.__file__).parent / "retrieval" / "search.py")
    cli._tell_warning("1 of 2 texts are empty\x1b[31m.", UserWarning, ours, 7)
    assert capsys.readouterr().err == "warning: 1 of 2 texts are empty[31m.\n"
    cli._tell_warning("old\x1b]0;", DeprecationWarning, "/elsewhere/a.py", 7)
    assert "/elsewhere/a.py:7: DeprecationWarning: old]0;" in capsys.readouterr().err
