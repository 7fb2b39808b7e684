"""Files that are either whole or not there: atomic writes, hashes, JSON, JSON lines and YAML."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from lmlab.errors import UserError
from lmlab.files.compression import open_binary
from lmlab.files.parsing import MAX_JSON_BYTES, MAX_YAML_BYTES, decode_utf8, parse_json, parse_yaml, require_mapping


def draft_of(path: str | Path) -> Path:
    """Where a file or folder is written before it comes to its place; a name that no other process has."""
    path = Path(path)
    # containers that share a folder have the same numbers of processes
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary place beside `path` for what is written by name; on success it is flushed to disk and renamed to
    `path`, on failure removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    try:
        yield draft
        descriptor = os.open(draft, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_file(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on success flush it to disk and rename it to `path`, on failure
    remove it.
    """
    with atomic_path(path) as draft, open(draft, mode, encoding=None if "b" in mode else "utf-8") as file:
        yield file


def require_writable(path: str | Path) -> None:
    """See that a file can be written, before the long work whose result it is to hold.

    Raises:
        OSError: it is a folder, or its folder can be neither made nor written to.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = draft_of(path)
    temporary.write_bytes(b"")
    temporary.unlink()


def remove_leftovers(directory: str | Path, nested: bool = True) -> None:
    """Remove the temporary files and directories below `directory` that killed processes have left; nobody else may be
    writing there. Without `nested` only those directly in it.
    """
    for path in sorted(Path(directory).glob("**/.*.tmp" if nested else ".*.tmp")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_file(path, "w") as file:
        file.write(text)


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def update_json(path: str | Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Write the mapping that `change` makes of the one in a JSON file; one that is missing or broken is empty.
    Processes that do so at the same time wait for each other (where the system has locks), so that none loses what
    another wrote.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        # there are no locks on Windows and on some file systems, and the file may be another user's
        with suppress(ImportError, OSError):
            import fcntl

            lock = held.enter_context(open(path.with_name(f".{path.name}.lock"), "ab"))
            fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the file is closed, also by the death of the process
        known: Any = {}
        with suppress(UserError):
            known = read_json(path) if path.exists() else {}
        write_json(path, change(known if isinstance(known, dict) else {}))


def read_json(path: str | Path, allow_nan: bool = False) -> Any:
    """Read a JSON file; a missing or broken one is a `UserError` that names it (`parse_json`)."""
    return parse_json(_read_bounded(path, MAX_JSON_BYTES), f"'{path}'", allow_nan)


def read_mapping(path: str | Path, allow_nan: bool = False) -> dict[str, Any]:
    """Read a JSON file whose top level is a mapping of keys to values; anything else is a `UserError`."""
    return require_mapping(read_json(path, allow_nan), f"'{path}'")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping (`parse_yaml`)."""
    text = decode_utf8(_read_bounded(path, MAX_YAML_BYTES), f"'{path}'")
    return require_mapping(parse_yaml(text, f"'{path}'"), f"'{path}'")


def _read_bounded(path: str | Path, most: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(most + 1)  # one more than is taken, so that parsing refuses it
    except FileNotFoundError:
        raise UserError(f"No such file: '{path}'.") from None
    except IsADirectoryError:
        raise UserError(f"'{path}' is a directory where a file is needed.") from None


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object a line, atomically; return the number of rows."""
    count = 0
    with atomic_file(path, "w") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_jsonl(path: str | Path, allow_nan: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON lines file, each a mapping; anything else is a `UserError` that names file and line."""
    try:
        file = open_binary(path)
    except FileNotFoundError:
        raise UserError(f"No such file: '{path}'.") from None
    with file:
        lines = iter(lambda: file.readline(MAX_JSON_BYTES + 1), b"")
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"'{path}', line {number}"
                yield require_mapping(parse_json(line, where, allow_nan), where)


def sha256_file(path: str | Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """The hexadecimal SHA-256 of a value's canonical JSON (sorted keys, no spaces)."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    ).hexdigest()
