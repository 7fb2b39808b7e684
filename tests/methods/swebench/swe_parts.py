"""What tests of the method share and import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmlab.methods.swebench.instances.instance import Instance


@dataclass(frozen=True)
class PublishedLog:
    """A real log, and what `swebench` 5.0.2 says of it."""

    name: str
    data: bytes
    expected: dict[str, Any]
    instance: Instance
