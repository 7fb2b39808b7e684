"""The kinds of sources, found by `lmlab.plugins`, so that any method and any package adds one."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from lmlab import plugins
from lmlab.errors import UserError, did_you_mean
from lmlab.files import without_compression

if TYPE_CHECKING:
    from lmlab.data.sources.reading.records import RecordSource

_log = logging.getLogger(__name__)


@cache
def source_kinds() -> dict[str, type[Any]]:
    """The classes of all kinds of sources, by name. What is registered and cannot be loaded, or is no source, is left
    out with a warning: it must not lock the others.
    """
    found: dict[str, type[Any]] = {}
    for name, place in sorted(plugins.places("sources").items()):
        try:
            found[name] = _source_at(place)
        except UserError as error:
            _log.warning("The source of documents '%s' is left out: %s", name, error.message)
    return found


def _source_at(place: str) -> type[Any]:
    made: type[Any] = plugins.load(place)
    fields = getattr(made, "model_fields", {})
    lacks = [each for each in ("read", "fingerprint", "notices") if not callable(getattr(made, each, None))]
    if "kind" not in fields or lacks:
        raise UserError(
            f"'{place}' is no source of documents: it lacks {', '.join(lacks or ['the field kind'])}.",
            "lmlab.data.Source says what a source has.",
        )
    return made


def find_source(kind: str) -> type[Any]:
    """The class of a kind of source.

    Raises:
        UserError: there is none of that name; the message names the nearest. Or it cannot be loaded, or is none.
    """
    known = source_kinds()
    if kind not in known:
        if place := plugins.places("sources").get(kind):
            return _source_at(place)  # which says why it was left out
        raise UserError(f"Unknown kind of source '{kind}'. {did_you_mean(kind, known)}")
    return known[kind]


def kind_of(name: str) -> str | None:
    """The kind of source for a file, by the end of its name before that of a compression."""
    suffix = PurePosixPath(without_compression(name)).suffix.lower()
    return _by_suffix().get(suffix) if suffix else None


def record_kinds() -> dict[str, type[RecordSource]]:
    """The kinds whose sources have records with named fields, by name."""
    from lmlab.data.sources.reading.records import RecordSource

    return {name: made for name, made in source_kinds().items() if issubclass(made, RecordSource)}


@cache
def _by_suffix() -> dict[str, str]:
    # A set of files is known by other marks than their names: those of MDS by their index.
    return {
        suffix: kind
        for kind, made in source_kinds().items()
        if kind != "mds"
        for suffix in getattr(made, "suffixes", ())
    }
