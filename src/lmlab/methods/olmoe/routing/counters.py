"""The counts that OLMoE's analyses publish as pickles: read without admitting anything but counters and numbers."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from lmlab.errors import UserError

_ADMITTED = {
    ("collections", "Counter"),
    ("collections", "defaultdict"),
    ("builtins", "int"),
    ("builtins", "float"),
    ("builtins", "list"),
    ("builtins", "dict"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
}


class _Counters(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read_counters(path: str | Path, *, allow_pickle: bool = False) -> Any:
    """The object of a pickle of `collections.Counter`, `defaultdict`, plain containers and numbers.

    Arguments:
        allow_pickle: must be set: a file from others is opened only if asked for.

    Raises:
        UserError: it was not asked for, or the file is missing, damaged, or holds anything else.
    """
    path = Path(path)
    if not allow_pickle:
        raise UserError(
            f"'{path}' is a pickle, which lmlab does not open unasked.",
            "If you trust where it comes from, set allow_pickle.",
        )
    if not path.exists():
        raise UserError(f"There is no file '{path}'.")
    try:
        with open(path, "rb") as file:
            return _Counters(file).load()
    except Exception as error:  # malformed pickles raise many kinds
        raise UserError(f"'{path}' is not a pickle of counters ({error}).") from None
