"""Documents to tokenized shards, by many processes, each shard a job of its own that is not done twice."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lmlab.data.documents import Document
from lmlab.data.shards import ShardBuilder, TokenizedItem, hash_range, token_dtype, write_manifest
from lmlab.data.tokenizer import SpecialTokens, Tokenizer
from lmlab.distributed import Backend, fan_out, num_cores
from lmlab.errors import UserError
from lmlab.files import atomic_file, json_value, open_binary, read_mapping, without_compression
from lmlab.progress import progress, short

BYTES_PER_TOKEN = 4  # of text, about
_BATCH_BYTES = 2**20  # of JSON: less leaves the threads of the tokenizer idle, more takes memory
# threads alone are faster up to there: a process has to be started, and what is not in the library runs on one core
_CORES_A_WORKER = 4


@dataclass(frozen=True)
class _Unit:
    """The bytes of a file of documents that make one shard, and how many threads may work on it (None for all
    cores).
    """

    path: str
    start: int
    end: int
    directory: str
    name: str
    tokenizer: str
    special_tokens: SpecialTokens
    threads: int | None


def tokenize_documents(
    path: Path | str,
    tokenizer: Tokenizer,
    directory: Path | str,
    shard_tokens: int = 2**26,
    workers: int | None = None,
    backend: Backend = "processes",
    special_tokens: SpecialTokens = "as_text",
) -> dict[str, Any]:
    """Tokenize a JSON lines file of documents as [begin] text [end] and write shards of about `shard_tokens` tokens.

    The shards do not depend on the number of workers. Those that an earlier attempt finished, from the same bytes with
    the same tokenizer, are kept.

    Arguments:
        path: as `collect` writes it; a compressed one is unpacked in `directory` first.
        workers: processes, which share the cores; by default one for every four cores. One alone uses all cores by
            threads.
        special_tokens: what special tokens become that documents spell, such as `<|endoftext|>`: text, or what
            `transformers` makes of them.

    Returns:
        the manifest.

    Raises:
        UserError: a line is no document, or a compressed file is damaged.
    """
    path, directory = Path(path), Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(directory / "tokenizer")
    plain = _unpacked(path, directory)
    ranges = list(_ranges(plain, shard_tokens * BYTES_PER_TOKEN))
    workers = max(1, min(workers or num_cores() // _CORES_A_WORKER, len(ranges)))
    threads = max(1, num_cores() // workers) if workers > 1 else None
    units = [
        _Unit(str(plain), start, end, str(directory), f"{number:05d}", tokenizer.fingerprint, special_tokens, threads)
        for number, (start, end) in enumerate(ranges)
    ]
    entries: list[dict[str, Any]] = [{} for _ in units]
    num_tokens = 0
    with progress("tokenize", plain.stat().st_size, "B") as advance:
        for index, entry in fan_out(_tokenize, units, workers, backend):
            entries[index] = entry
            num_tokens += entry["tokens"]
            advance(units[index].end - units[index].start, note=f"{short(num_tokens)} tokens")
    _remove_others(directory, {unit.name for unit in units})
    manifest = write_manifest(directory, tokenizer, entries, source={"name": path.name, "bytes": plain.stat().st_size})
    if plain != path:
        plain.unlink()
    return manifest


def _unpacked(path: Path, directory: Path) -> Path:
    if without_compression(path.name) == path.name:
        return path
    plain = directory / "documents.tmp.jsonl"
    with open_binary(path) as packed, atomic_file(plain) as file:
        shutil.copyfileobj(packed, file)
    return plain


def _ranges(path: Path, size: int) -> Iterator[tuple[int, int]]:
    """Cut a file at the ends of lines into parts of about `size` bytes."""
    total, start = path.stat().st_size, 0
    with open(path, "rb") as file:
        while start < total:
            file.seek(min(start + size, total) - 1)
            file.readline()
            yield start, file.tell()
            start = file.tell()


def _tokenize(unit: _Unit) -> dict[str, Any]:
    """Write one shard, or find that it is there."""
    directory = Path(unit.directory)
    made_from = {"range": [unit.start, unit.end], "sha256": hash_range(Path(unit.path), unit.start, unit.end)}
    found = _finished(directory, unit, made_from)
    if found is not None:
        return found
    if unit.threads is not None:  # the other cores have shards of their own
        os.environ |= {"TOKENIZERS_PARALLELISM": str(unit.threads > 1).lower(), "RAYON_NUM_THREADS": str(unit.threads)}
    tokenizer = _tokenizer(directory / "tokenizer", unit.tokenizer)
    builder = ShardBuilder(token_dtype(tokenizer))
    for batch in _batches(unit):
        encoded = tokenizer.encode_batch([document.text for document in batch], unit.special_tokens)
        for document, ids in zip(batch, encoded, strict=True):
            builder.add(
                TokenizedItem([tokenizer.bos_id, *ids, tokenizer.eos_id], document.domain, len(document.text.encode()))
            )
    return builder.write(directory, unit.name, {"source": made_from, **_made_by(unit)})


def _made_by(unit: _Unit) -> dict[str, str]:
    return {"tokenizer": unit.tokenizer, "special_tokens": unit.special_tokens}


def _finished(directory: Path, unit: _Unit, made_from: dict[str, Any]) -> dict[str, Any] | None:
    path = directory / f"{unit.name}.json"
    if not path.exists():
        return None
    entry: dict[str, Any] = read_mapping(path)
    same = entry.get("source") == made_from and all(entry.get(key) == value for key, value in _made_by(unit).items())
    return entry if same and all((directory / f"{unit.name}.{part}.npy").exists() for part in entry["sha256"]) else None


@lru_cache(1)
def _tokenizer(directory: Path, fingerprint: str) -> Tokenizer:
    return Tokenizer.load(directory)


def _batches(unit: _Unit) -> Iterator[list[Document]]:
    """The documents of a unit, about a megabyte at a time."""
    batch, size = list[Document](), 0
    with open(unit.path, "rb") as file:
        file.seek(unit.start)
        while file.tell() < unit.end:
            place = file.tell()
            line = file.readline()
            if line.strip():
                try:
                    batch.append(Document(**json_value(line)))
                except (TypeError, ValueError):
                    raise UserError(
                        f"'{unit.path}', byte {place}: not a document; it needs the keys id, text, domain and group.",
                        "Write it with collect.",
                    ) from None
                size += len(line)
            if size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _remove_others(directory: Path, names: set[str]) -> None:
    """Remove shards that an earlier, different attempt left."""
    for path in directory.glob("[0-9]*.*"):
        if path.name.split(".")[0] not in names:
            path.unlink()
