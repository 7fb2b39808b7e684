"""The kinds of sources, found by `lmlab.plugins`, so that any method and any package adds one."""

from __future__ import annotations

from functools import cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from lmlab import plugins
from lmlab.errors import UserError, did_you_mean
from lmlab.storage import without_compression

if TYPE_CHECKING:
    from lmlab.data.sources.records import RecordSource


@cache
def source_kinds() -> dict[str, type[Any]]:
    """The classes of all kinds of sources, by name.

    Raises:
        UserError: what is registered cannot be loaded, or is no source; the message names it.
    """
    found: dict[str, type[Any]] = {}
    for name, place in sorted(plugins.places("sources").items()):
        made = plugins.load(place)
        fields = getattr(made, "model_fields", {})
        lacks = [each for each in ("read", "fingerprint", "notices") if not callable(getattr(made, each, None))]
        if "kind" not in fields or lacks:
            raise UserError(
                f"'{place}' is no source of documents: it lacks {', '.join(lacks or ['the field kind'])}.",
                "lmlab.data.Source says what a source has.",
            )
        found[name] = made
    return found


def find_source(kind: str) -> type[Any]:
    """The class of a kind of source.

    Raises:
        UserError: there is none of that name; the message names the nearest.
    """
    known = source_kinds()
    if kind not in known:
        raise UserError(f"Unknown kind of source '{kind}'. {did_you_mean(kind, known)}")
    return known[kind]


def kind_of(name: str) -> str | None:
    """The kind of source for a file, by the end of its name before that of a compression."""
    suffix = PurePosixPath(without_compression(name)).suffix.lower()
    return _by_suffix().get(suffix) if suffix else None


def record_kinds() -> dict[str, type[RecordSource]]:
    """The kinds whose sources have records with named fields, by name."""
    from lmlab.data.sources.records import RecordSource

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
