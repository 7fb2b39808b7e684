"""Real code and prose that every machine has: the standard library of the running Python.

Three domains: `code` (modules without their docstrings), `docstrings` (their documentation), and `reference` (the
language reference that `help()` shows). A module's code, its docstrings and its tests form one group, so that it is
held out whole.
"""

from __future__ import annotations

import ast
import io
import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lmlab.config import Config
from lmlab.data.documents import Document, Reject
from lmlab.errors import UserError
from lmlab.files import content_digests

_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__"}
_TEST_FOLDERS = {"test", "tests", "idle_test"}
_TOPICS = Path("pydoc_data", "topics.py")
_SHARED_PARAGRAPH = 80  # characters: shorter paragraphs, such as headings, are the same in unrelated topics

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """A Python file: its path below the folder that is read, its text, and that parsed."""

    path: Path
    source: str
    tree: ast.Module

    @property
    def name(self) -> str:
        """As it is imported."""
        return ".".join(self.path.with_suffix("").parts).removesuffix(".__init__")

    def documented(self) -> list[tuple[Documented, str]]:
        """What has a docstring, with it: the module, classes and functions."""
        owners = [node for node in ast.walk(self.tree) if isinstance(node, Documented)]
        return [(node, text) for node in owners if (text := ast.get_docstring(node))]


class PythonLibrarySource(Config):
    """The source files below `path`, by default the running Python's standard library."""

    kind: Literal["python_library"] = "python_library"
    path: str | None = None
    tests: bool = False

    @property
    def root(self) -> Path:
        """The folder that is read."""
        return Path(self.path).expanduser() if self.path else Path(sysconfig.get_paths()["stdlib"])

    def fingerprint(self) -> dict[str, Any]:
        """The configuration with the Python version and every file's name, size and digest."""
        paths = self._files()
        named = zip(paths, content_digests(paths), strict=True)
        files = [(str(path.relative_to(self.root)), path.stat().st_size, digest) for path, digest in named]
        return {**self.model_dump(), "python": platform.python_version(), "files": files}

    def notices(self) -> list[str]:
        """None."""
        return []

    def read(self) -> Iterator[Document | Reject]:
        """Yield the documents module by module, in sorted order."""
        for module in self.modules():
            if isinstance(module, Reject):
                yield module
            elif module.path == _TOPICS:
                yield from _topics(module.tree)
            else:
                yield from _documents(module)

    def modules(self) -> Iterator[Module | Reject]:
        """Yield the parsed modules in sorted order."""
        for path in self._files():
            name = path.relative_to(self.root)
            try:
                source = _decode(path.read_bytes())
                yield Module(name, source, ast.parse(source))
            except (SyntaxError, UnicodeDecodeError, ValueError, LookupError) as error:
                yield Reject(str(name), f"not parsable as Python ({type(error).__name__})")

    def _files(self) -> list[Path]:
        if not self.root.is_dir():
            raise UserError(f"The folder of Python sources '{self.root}' does not exist.")
        skipped = _SKIPPED_FOLDERS | (set() if self.tests else _TEST_FOLDERS)
        files = [path for path in self.root.rglob("*.py") if skipped.isdisjoint(path.relative_to(self.root).parts[:-1])]
        return sorted(files)


def _decode(data: bytes) -> str:
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    return io.TextIOWrapper(io.BytesIO(data), encoding).read()


def _documents(module: Module) -> Iterator[Document]:
    group, documented = _group(module.path), module.documented()
    code = _without_docstrings(module.source, [node for node, _ in documented])
    yield Document(f"code:{module.name}", code, "code", group)
    if documented:
        entries = sorted(
            ((getattr(node, "lineno", 0), _title(node, module.name), text) for node, text in documented),
            key=lambda entry: entry[0],
        )
        text = "\n\n".join(f"{title}\n\n{text}" for _, title, text in entries) + "\n"
        yield Document(f"docstrings:{module.name}", text, "docstrings", group)


def _group(name: Path) -> str:
    parts = [part for part in name.with_suffix("").parts if part not in _TEST_FOLDERS]
    return (parts[0] if parts else name.stem).removeprefix("test_")


def _title(node: ast.AST, dotted: str) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return f"{node.name}({ast.unparse(node.args)})"
    return f"module {dotted}"


def _without_docstrings(source: str, owners: list[Any]) -> str:
    lines = io.StringIO(source, newline="").readlines()  # as the parser counts them: a form feed ends none
    for node in owners:
        docstring = node.body[0]
        first, last = docstring.lineno - 1, docstring.end_lineno
        if (
            any(other.lineno - 1 in (first, last - 1) for other in node.body[1:2])
            or node.__dict__.get("lineno") == docstring.lineno
        ):
            continue  # shares a line with other code
        only = len(node.body) == 1 and not isinstance(node, ast.Module)
        lines[first:last] = [" " * docstring.col_offset + "pass\n" if only else ""] + [""] * (last - first - 1)
    return "".join(lines)


def _topics(tree: ast.Module) -> Iterator[Document]:
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(statement.value)
            groups = _overlapping(topics)
            for topic, text in topics.items():
                yield Document(f"reference:{topic}", text, "reference", f"reference:{groups[topic]}")


def _overlapping(topics: dict[str, str]) -> dict[str, str]:
    """Name for each topic the group of those that share paragraphs with it, as many topics are sections of
    larger ones.
    """
    group = {topic: topic for topic in topics}

    def root(topic: str) -> str:
        while group[topic] != topic:
            topic = group[topic]
        return topic

    first: dict[str, str] = {}
    for topic, text in topics.items():
        for paragraph in text.split("\n\n"):
            words = " ".join(paragraph.split())
            if len(words) >= _SHARED_PARAGRAPH:
                group[root(topic)] = root(first.setdefault(words, topic))
    return {topic: root(topic) for topic in topics}
