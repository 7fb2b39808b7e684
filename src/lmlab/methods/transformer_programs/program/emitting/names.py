"""Names in an emitted program, none of which hides what its text uses."""

from __future__ import annotations

import builtins
import keyword
from collections.abc import Iterable, Mapping, Sequence

from lmlab.methods.transformer_programs.program.emitting.helpers import HELPERS
from lmlab.methods.transformer_programs.program.ir import Lookup, Node


def argument_names(node: Lookup) -> Iterable[str]:
    """What a table's arguments are called: after what they read, or by letters where that says nothing."""
    used = {f"values_{place}" for place in range(len(node.inputs))}
    for name in node.inputs:
        short = name.removesuffix("_outputs").removesuffix("s") or name
        while short in used or hasattr(builtins, short) or short in HELPERS or keyword.iskeyword(short):
            short += "_"
        used.add(short)
        yield short


def local_names(names: Sequence[str], others: set[str]) -> dict[str, str]:
    """A local variable for each variable of the program, none of which hides what the text uses."""
    found: dict[str, str] = {}
    taken = HELPERS | set(dir(builtins)) | others | {"place", "token", "tokens", "spelled", "a"}
    for name in names:
        local = name.removesuffix("_outputs") or name
        while local in taken or keyword.iskeyword(local):
            local += "_"
        taken.add(local)
        found[name] = local
    return found


def function_names(nodes: Sequence[Node], names: Mapping[str, str], others: set[str]) -> dict[str, str]:
    """The function of each node, named after its variable."""
    found: dict[str, str] = {}
    taken = HELPERS | set(dir(builtins)) | others | set(names.values())
    for node in nodes:
        function = f"{'table' if isinstance(node, Lookup) else 'match'}_{names[node.name]}"
        while function in taken:
            function += "_"
        taken.add(function)
        found[node.name] = function
    return found
