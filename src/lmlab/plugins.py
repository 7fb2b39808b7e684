"""What methods and other packages add to lmlab, found by entry points and loaded only when it is used.

A method is one entry point in the group `lmlab.methods`, its manifest: a `Method` of strings. From it come its command,
its stages and whatever else it registers (document sources, kinds of tasks, judges), and its rows in tables. A package
that only adds one thing registers that in a group of its own, such as `lmlab.stages`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal

from lmlab.errors import EXTRAS, LmlabError, UserError, did_you_mean

Group = Literal["stages", "sources", "tasks", "judges", "graders", "detectors"]

_METHODS = "lmlab.methods"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Method:
    """The manifest of a method: strings only, so that reading it loads nothing else.

    Attributes:
        title: its name in tables.
        question: the question that it answers for a user.
        paper: authors and year; `url` leads to it.
        command: `lmlab COMMAND`; `cli` is where its Typer application is, and `help` what `lmlab --help` says of it.
        page: its page below docs/.
        published: a figure of the paper; `reached` is ours, measured as the page says.
        extras: optional dependencies of lmlab that it needs (`pip install 'lmlab[EXTRA]'`).
        stages, sources, tasks, judges, graders, detectors: kinds that it registers: name -> "module:attribute".
    """

    title: str
    question: str
    paper: str
    url: str
    command: str
    cli: str
    help: str
    page: str
    published: str = ""
    reached: str = ""
    extras: tuple[str, ...] = ()
    stages: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    tasks: Mapping[str, str] = field(default_factory=dict)
    judges: Mapping[str, str] = field(default_factory=dict)
    graders: Mapping[str, str] = field(default_factory=dict)
    detectors: Mapping[str, str] = field(default_factory=dict)


@lru_cache(maxsize=1)
def methods() -> dict[str, Method]:
    """The manifests of all installed methods by their packages' names, in the order of their commands.

    One that cannot be loaded is left out with a warning: it must not lock the others.
    """
    found: dict[str, Method] = {}
    for name, place in _registered("kind of method", _points(_METHODS)).items():
        try:
            found[name] = load(place)
        except UserError as error:
            _log.warning("The method '%s' is left out: %s", name, error.message)
    _registered("command", ((each.command, each.cli) for each in found.values()))
    return dict(sorted(found.items(), key=lambda each: each[1].command))


def known(group: Group) -> list[str]:
    """The names that are registered in a group."""
    return sorted(places(group))


def find(group: Group, name: str, called: str, where: str) -> Any:
    """What is registered under a name.

    Arguments:
        called: what it is, for the message: "kind of stage".
        where: the place in the user's files that names it.

    Raises:
        UserError: nothing is, with the nearest name.
    """
    registered = places(group)
    if name not in registered:
        raise UserError(f"{where}: unknown {called} '{name}'. {did_you_mean(name, registered)}")
    return load(registered[name])


def make(group: Group, name: str, called: str, where: str, protocol: str, has: Sequence[str], *given: Any) -> Any:
    """What the maker that is registered under a name makes of what it is given.

    Arguments:
        called, where: as in `find`.
        protocol: where the reader finds what such a thing has.
        has: attributes that it must have.

    Raises:
        UserError: nothing is registered, it cannot be made of what is given, or it lacks one of them.
    """
    maker = find(group, name, called, where)
    place = places(group)[name]
    try:
        made = maker(*given)
    except (AttributeError, TypeError) as error:
        raise UserError(
            f"'{place}' makes no {called} of what it is given ({type(error).__name__}: {error}).",
            f"{protocol} says what a {called} has.",
        ) from error
    if lacks := [each for each in has if not hasattr(made, each)]:
        raise UserError(
            f"'{place}' makes no {called}: it lacks {', '.join(lacks)}.", f"{protocol} says what a {called} has."
        )
    return made


def load(place: str) -> Any:
    """The object at "module:attribute".

    Raises:
        UserError: it is not there, or its package does not work.
    """
    module, _, attribute = place.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except LmlabError:
        raise
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in EXTRAS:
            raise  # the command line names the extra that brings it
        raise _broken(place, error) from error
    except Exception as error:  # code of any package
        raise _broken(place, error) from error


def _broken(place: str, error: Exception) -> UserError:
    return UserError(
        f"'{place}' cannot be loaded ({type(error).__name__}: {error}).", "Mend or remove the package that offers it."
    )


@lru_cache(maxsize=8)
def places(group: Group) -> dict[str, str]:
    """What is registered in a group: name -> "module:attribute".

    Raises:
        UserError: two packages register one name for different things.
    """
    of_methods = [each for method in methods().values() for each in getattr(method, group).items()]
    return _registered(f"name in '{group}'", [*_points(f"lmlab.{group}"), *of_methods])


def _points(group: str) -> Iterator[tuple[str, str]]:
    return ((point.name, point.value) for point in entry_points(group=group))


def _registered(called: str, points: Iterable[tuple[str, str]]) -> dict[str, str]:
    """By name, none of which may stand for two things: which of them a recipe meant would be chance. A package that is
    installed twice, from its source and as a wheel, registers the same twice.
    """
    found: dict[str, str] = {}
    for name, place in points:
        if found.setdefault(name, place) != place:
            raise UserError(
                f"Two packages offer the {called} '{name}': '{found[name]}' and '{place}'.", "Remove one of them."
            )
    return found
