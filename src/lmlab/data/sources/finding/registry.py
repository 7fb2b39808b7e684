"""The field of a configuration that takes any kind of source."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from lmlab.data.documents import Source
from lmlab.data.sources.finding.kinds import source_kinds

if TYPE_CHECKING:
    SourceConfig = Source
else:
    SourceConfig = Annotated[reduce(or_, source_kinds().values()), Field(discriminator="kind")]
