"""Names in an emitted program, none of which hides what its text uses."""

from __future__ import annotations

import builtins
import keyword
from collections.abc import Iterable, Sequence

from lmlab.methods.transformer_programs.program.emitting.helpers import HELPERS
from lmlab.methods.transformer_programs.program.ir import Lookup


def argument_names(node: Lookup) -> Iterable[str]:
    """What a table's arguments are called: after what they read, or by letters where that says nothing."""
    used = {f"values_{place}" for place in range(len(node.inputs))}
    for name in node.inputs:
        short = name.removesuffix("_outputs").removesuffix("s") or name
        while short in used or hasattr(builtins, short) or short in HELPERS or keyword.iskeyword(short):
            short += "_"
        used.add(short)
        yield short


def local_names(names: Sequence[str], functions: set[str]) -> dict[str, str]:
    """A local variable for each variable of the program, none of which hides what the text uses."""
    found: dict[str, str] = {}
    taken = HELPERS | set(dir(builtins)) | functions | {"chosen", "place", "token", "tokens", "spelled", "a"}
    for name in names:
        local = name
        while local in taken:
            local += "_"
        taken.add(local)
        found[name] = local
    return found
