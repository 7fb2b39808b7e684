from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from forked import Forkserver


@pytest.fixture(scope="session")
def by_processes() -> Iterator[Callable[..., tuple[int, str]]]:
    """Run a script by several processes: by_processes(2, script, *arguments) gives exit code and standard error."""
    server = Forkserver()
    yield server.run
    server.close()
