"""Where documents come from. A source is chosen in a recipe by its `kind`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lmlab.data.documents import Source
from lmlab.data.sources.choose import choose_kind, record_source, source_settings
from lmlab.data.sources.files import TextSource
from lmlab.data.sources.python_library import PythonLibrarySource
from lmlab.data.sources.records import (
    ArrowSource,
    JsonlSource,
    MDSSource,
    ParquetSource,
    RecordSource,
    WebDatasetSource,
)
from lmlab.data.sources.tokenized import TokenizedSource

SourceConfig = Annotated[
    JsonlSource
    | ParquetSource
    | ArrowSource
    | MDSSource
    | WebDatasetSource
    | TextSource
    | TokenizedSource
    | PythonLibrarySource,
    Field(discriminator="kind"),
]

__all__ = [
    "ArrowSource",
    "JsonlSource",
    "MDSSource",
    "ParquetSource",
    "PythonLibrarySource",
    "RecordSource",
    "Source",
    "SourceConfig",
    "TextSource",
    "TokenizedSource",
    "WebDatasetSource",
    "choose_kind",
    "record_source",
    "source_settings",
]
