"""Where documents come from. A source is chosen in a recipe by its `kind`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lmlab.data.documents import Source
from lmlab.data.sources.files import JsonlSource, TextSource
from lmlab.data.sources.python_library import PythonLibrarySource

SourceConfig = Annotated[JsonlSource | TextSource | PythonLibrarySource, Field(discriminator="kind")]

__all__ = ["JsonlSource", "PythonLibrarySource", "Source", "SourceConfig", "TextSource"]
