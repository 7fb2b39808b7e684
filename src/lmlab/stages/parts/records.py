"""What stages that learn from records have in common: where they come from, how many may be unfit, and which are held
out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Discriminator, Tag

from lmlab.data import ChatConfig, RecordSource, Reject, chat_template, read_records, record_kinds, record_source
from lmlab.files import is_url
from lmlab.runs import Input, StageContext

REJECTS_REMEDY = "Mend the records (rejects.jsonl lists them), or raise max_reject_fraction."


def _locate(value: Any) -> Any:
    """A URL or a glob as the source that it needs; whatever else it is stays as it is."""
    return (
        record_source(value)
        if isinstance(value, str) and (is_url(value) or not set(value).isdisjoint("*?["))
        else value
    )


def _kind(value: Any) -> Any:
    return (
        "path"
        if isinstance(value, str)
        else value.get("kind")
        if isinstance(value, dict)
        else getattr(value, "kind", None)
    )


if TYPE_CHECKING:
    Records = str | RecordSource
else:
    _KINDS = record_kinds()
    Records = Annotated[
        reduce(or_, (Annotated[made, Tag(name)] for name, made in _KINDS.items()), Annotated[Input, Tag("path")]),
        Discriminator(_kind, "records", f"expected a path, or a source of kind {' or '.join(_KINDS)}"),
        BeforeValidator(_locate),
    ]
"""A field that names records: an earlier stage, a path, a glob, a URL, or a source of records with its settings."""


def records_fingerprint(records: str | RecordSource, chat: ChatConfig) -> Any:
    """What examples depend on beside inputs, which the run looks at itself: the files of a source, and the template."""
    template = chat_template(chat)
    return [records.fingerprint() if isinstance(records, RecordSource) else None, *([template] if template else [])]


def records_of(records: str | RecordSource, context: StageContext) -> Iterator[tuple[str, Any] | Reject]:
    """The records that the field `records` of a stage names (`read_records`)."""
    if isinstance(records, RecordSource):
        return read_records(records)
    path = context.inputs["records"]
    written = path / "records.jsonl"  # by a stage
    return read_records(written if written.exists() else path)


def is_heldout(number: int, fraction: float, seed: int) -> bool:
    """Whether record `number` is held out: a draw that depends on nothing else."""
    drawn = int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:8])
    return drawn < fraction * 2**64
