"""One safetensors file, read whole: its tensors and its metadata."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lmlab.errors import LmlabError


def read_tensors(path: Path | str, remedy: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by name, on the CPU, and what its header says about them.

    Arguments:
        remedy: what to do where the file is damaged.

    Raises:
        LmlabError: it is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise LmlabError(f"'{path}' is damaged ({error}).", remedy) from None
