"""Conversations and preferences that every machine has: what a function or class of Python's standard library does,
answered by its docstring.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lmlab.data.documents import Reject
from lmlab.data.sources.python_library import PythonLibrarySource

_MIN_CHARACTERS, _MAX_CHARACTERS = 20, 400  # of an answer: shorter ones say nothing, longer ones are manuals


@dataclass(frozen=True)
class DocstringQuestion:
    """A question about one name of a module, and the first paragraph of its docstring."""

    module: str
    question: str
    answer: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The question as a turn of the user."""
        return [{"role": "user", "content": self.question}]


def docstring_questions(source: PythonLibrarySource) -> Iterator[DocstringQuestion]:
    """Yield a question for each public function and class with a docstring, in the order of modules and lines; each
    name and each answer once in a module."""
    for module in source.modules():
        if isinstance(module, Reject):
            continue
        seen: set[str] = set()
        for node, text in sorted(module.documented(), key=lambda pair: getattr(pair[0], "lineno", 0)):
            answer = " ".join(text.split("\n\n")[0].split())
            if (
                isinstance(node, ast.Module)
                or node.name.startswith("_")
                or not _MIN_CHARACTERS <= len(answer) <= _MAX_CHARACTERS
            ):
                continue
            if not seen.isdisjoint((node.name, answer)):
                continue
            seen |= {node.name, answer}
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            yield DocstringQuestion(
                module.name, f"What does the {kind} {node.name} of the module {module.name} do?", answer
            )


def conversation_records(source: PythonLibrarySource) -> Iterator[dict[str, Any]]:
    """The questions with their answers, as `messages`."""
    for each in docstring_questions(source):
        yield {"messages": [*each.messages, {"role": "assistant", "content": each.answer}], "domain": "docstrings"}


def preference_records(source: PythonLibrarySource, seed: int) -> Iterator[dict[str, Any]]:
    """The questions with their answer as `chosen`, and as `rejected` the same going on with another answer about the
    module, drawn by the seed.
    """
    by_module: dict[str, list[DocstringQuestion]] = {}
    for each in docstring_questions(source):
        by_module.setdefault(each.module, []).append(each)
    for module, questions in by_module.items():
        draw = random.Random(f"{seed}:{module}")
        for each in questions if len(questions) > 1 else ():
            other = draw.choice([question for question in questions if question is not each])
            turns = [
                [{"role": "assistant", "content": text}] for text in (each.answer, f"{each.answer} {other.answer}")
            ]
            yield {"prompt": each.messages, "chosen": turns[0], "rejected": turns[1], "domain": "docstrings"}
