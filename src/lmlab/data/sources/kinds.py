"""The kinds of sources, found by entry points (group `lmlab.sources`), so that any package adds one."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from pathlib import PurePosixPath
from typing import Any

from lmlab.errors import UserError, did_you_mean
from lmlab.storage import without_compression

ENTRY_POINTS = "lmlab.sources"


@cache
def source_kinds() -> dict[str, type[Any]]:
    """The classes of all kinds of sources, by name.

    Raises:
        UserError: an entry point names what cannot be loaded, or is no source; the message names it.
    """
    found: dict[str, type[Any]] = {}
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        try:
            made = point.load()
        except Exception as error:  # code of another package
            raise UserError(
                f"The source of documents '{point.name}' ({point.value}) cannot be loaded: {error}.",
                "Mend or remove the package that offers it.",
            ) from None
        fields = getattr(made, "model_fields", {})
        lacks = [name for name in ("read", "fingerprint", "notices") if not callable(getattr(made, name, None))]
        if "kind" not in fields or lacks:
            raise UserError(
                f"'{point.value}' is no source of documents: it lacks {', '.join(lacks or ['the field kind'])}.",
                "lmlab.data.Source says what a source has.",
            )
        found[point.name] = made
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


@cache
def _by_suffix() -> dict[str, str]:
    # A set of files is known by other marks than their names: those of MDS by their index.
    return {
        suffix: kind
        for kind, made in source_kinds().items()
        if kind != "mds"
        for suffix in getattr(made, "suffixes", ())
    }
