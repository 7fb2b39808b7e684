"""The program that runs in the sandbox: an answer, then its tests. Of the standard library alone; never imported.

Standard input holds three lines: the answer as JSON, the tests as JSON, and a word. The tests are read only once the
answer's own statements have run, and the word is printed only once all tests have passed: an answer that ends the
process prints nothing.
"""

import json
import sys
from typing import Any

_PLAIN = (int, float, complex, str, bytes, bool, list, tuple, set, frozenset, dict, type(None))


def _has_own_rule(value: Any, depth: int = 0) -> bool:
    """Whether a value, or one in it, compares by a rule of the answer's own: it could be equal to everything."""
    kind = type(value)
    if kind not in _PLAIN:
        return any("__eq__" in vars(each) and getattr(each, "__module__", None) == "answer" for each in kind.__mro__)
    if depth < 4 and kind in (list, tuple, set, frozenset, dict):
        parts = [*value, *value.values()] if kind is dict else value
        return any(_has_own_rule(each, depth + 1) for each in parts)
    return False


def main() -> None:
    space: dict[str, Any] = {"__name__": "answer", "__builtins__": __builtins__}
    read = json.JSONDecoder().decode  # lmlab's own readers are not at hand here
    exec(compile(read(sys.stdin.readline()), "answer.py", "exec"), space)  # noqa: S102 (this is the sandbox)
    job = read(sys.stdin.readline())
    word = sys.stdin.readline().strip()
    name = job["entry_point"]
    inner = space.get(name)
    if name and inner is None:
        raise NameError(f"the function {name} is not defined")
    if callable(inner) and not isinstance(inner, type):

        def candidate(*arguments: Any, **named: Any) -> Any:
            value = inner(*arguments, **named)
            if _has_own_rule(value):
                raise AssertionError("forged: the answer compares by a rule of its own")
            return value

        space[name] = candidate
    exec(compile(job["test"], "test.py", "exec"), space)  # noqa: S102 (this is the sandbox)
    if job["control"]:
        raise AssertionError("a control fails")
    print("\n" + word, flush=True)


main()
