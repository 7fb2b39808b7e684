"""Rating a corpus on the disk: by any number of processes, that share the work through leases and go on where others
were cut off.

The corpus is cut into blocks of rows. A block is rated at once and written whole, so that a resumed annotation is
bit-equal to one that was never stopped. When the corpus has changed since, files that are as they were keep their
annotation, and of the others only rows that nobody has rated are rated; rows that are gone are gone from the ratings.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lmlab.data import Reject, Rejects
from lmlab.data.sources.reading.records import OF_SPLIT
from lmlab.distributed import Backend, FolderStore, Lease, Leases, fan_out
from lmlab.errors import UserError
from lmlab.files import (
    absolute,
    atomic_file,
    atomic_path,
    check_owner,
    describe,
    draft_of,
    read_mapping,
    sha256_json,
    write_json,
    write_manifest,
)
from lmlab.methods.qurating.annotating.corpus import IDS, REJECTED, TEXT, Annotation, Corpus, table_of
from lmlab.methods.qurating.annotating.reuse import ROWS, SOURCE, RatedRows, content_hashes, source_of
from lmlab.methods.qurating.rating.encoder_rater import load_rater
from lmlab.methods.qurating.rating.rater import annotation
from lmlab.methods.qurating.selecting.tables.writing import join_tables
from lmlab.progress import Advance, progress

_log = logging.getLogger(__name__)
_POLL_S = 0.5  # between looks at what others do: less asks the file system often, more waits after it
_COMMAND = "lmlab quality annotate"
_OUTPUTS = "[0-9]*.parquet"
_NOTES = ("annotation.json", "rejects.jsonl")


@dataclass(frozen=True)
class _Job:
    annotation: Annotation
    worker: int


def annotate(job: Annotation, workers: int = 1, backend: Backend = "processes", gpus: float = 0) -> dict[str, Any]:
    """Annotate a corpus; returns counts. Run it again after a kill, or at the same time on other machines that see the
    folder.

    Under `torchrun` each process calls it with one worker.

    Arguments:
        workers, backend, gpus: as in `fan_out`.

    Raises:
        TokenizerMismatch: there are only token ids, of another tokenizer.
        UserError: the folder holds another annotation, or the corpus cannot be read.
    """
    Path(job.out).mkdir(parents=True, exist_ok=True)
    if workers <= 1:
        return _work(_Job(job, 0))
    results = [
        result for _, result in fan_out(_work, [_Job(job, number) for number in range(workers)], workers, backend, gpus)
    ]
    summed = {name: sum(found[name] for found in results) for name in ("rated", "reused")}
    return max(results, key=lambda found: found["rows"]) | summed


def _work(job: _Job) -> dict[str, Any]:
    """Rate blocks until there are none, then put the files together."""
    worker = _Worker(job.annotation)
    if job.worker > 0:  # one of several tells how fast it goes, and all go alike
        return worker.run()
    with progress("rate", None, "documents") as worker.advance:
        return worker.run()


class _Worker:
    """Rates blocks that no other worker has taken.

    Attributes:
        advance: is told of each document that is rated.
    """

    def __init__(self, job: Annotation) -> None:
        self.advance: Advance = lambda amount=1, note="": None
        self.job, self.out = job, Path(job.out)
        self.rater = load_rater(job.rater, job.device, job.precision)
        self.corpus = Corpus(job)
        self.files, self.names = self.corpus.files, self.corpus.names
        self._check_folder()
        self.parts = self.out / ".parts"
        self.leases = Leases(FolderStore(self.out / ".leases"))
        self.kept, self.hashes = self.out / ".kept", self.out / ".rows"
        self.sources = [sha256_json([name, describe(file)]) for name, file in zip(self.names, self.files, strict=True)]
        self._agree()
        self._arrange()
        self._encode, self._content = self.corpus.encoder(self.rater.tokenizer)
        self.rated = self.reused = 0
        self._known: RatedRows | None = None
        self._num_blocks: dict[int, int] = {}

    def _check_folder(self) -> None:
        """Refuse a folder whose files are not those of an annotation: they would be taken for it, and replaced."""
        check_owner(self.out, _COMMAND, self.files)
        foreign = next(iter(sorted(self.out.glob(_OUTPUTS))), None)
        if foreign is not None and not (self.out / "annotation.json").exists():
            raise UserError(f"'{foreign}' is not of an annotation.", "Choose another folder with --out.")

    def _agree(self) -> None:
        """Hold what the first worker wrote against one's own; the precision that was chosen automatically is the first
        one's.
        """
        path, own = self.out / "annotation.json", self._state()
        _write_once(path, own)
        known = read_mapping(path)
        if self.job.precision == "auto" and known["precision"] != own["precision"]:
            self.rater.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[known["precision"]]
            own = self._state()
        # a folder may be from a time when the corpus was noted as it was written
        if known["key"] not in (own["key"], self._state(self.job.corpus)["key"]):
            raise UserError(
                f"'{self.out}' holds the annotation of another corpus, or by another rater.", "Choose another folder."
            )

    def _arrange(self) -> None:
        """Bring the annotations of files that have not changed to their places, and set the others aside."""
        path = self.out / "annotation.json"
        while read_mapping(path).get("corpus") != self._digest():
            if (lease := self.leases.acquire("arrange")) is None:
                time.sleep(_POLL_S)
                continue
            with lease:
                if read_mapping(path).get("corpus") != self._digest():
                    write_manifest(self.out, _COMMAND, self._state()["key"], {}, done=False)
                    self._sort_out()
                    write_json(path, self._state() | {"corpus": self._digest()})

    def _sort_out(self) -> None:
        self.kept.mkdir(exist_ok=True)
        wanted = {source: self._target(number) for number, source in enumerate(self.sources)}
        for target in sorted(self.out.glob(_OUTPUTS)):
            source = source_of(target)
            if source is None:
                target.unlink()  # nothing tells what it is of
            elif wanted.get(source) != target:
                os.replace(target, self.kept / f"{source}.parquet")
        for source, target in wanted.items():
            if (self.kept / f"{source}.parquet").exists():
                os.replace(self.kept / f"{source}.parquet", target)

    def _digest(self) -> str:
        return sha256_json(self.sources)

    def _state(self, corpus: str | None = None) -> dict[str, Any]:
        rater, job = self.rater, self.job
        precision = "bf16" if rater.dtype == torch.bfloat16 else "fp32"
        parts = [
            corpus or absolute(job.corpus),
            job.text,
            job.id,
            job.input_ids,
            job.block,
            job.columns,
            rater.fingerprint,
            precision,
            *([] if job.split is None else [job.split]),
        ]
        hashes = {
            "rater": rater.fingerprint,
            "tokenizer": rater.tokenizer.fingerprint,
            "criteria": list(rater.criteria),
        }
        return {"key": sha256_json(parts), "done": False, "files": self.names, "precision": precision, **hashes}

    def run(self) -> dict[str, Any]:
        try:
            return self._run()
        finally:
            self.leases.close()

    def _run(self) -> dict[str, Any]:
        for number in range(len(self.files)):
            if self._finished(number):
                continue
            for block, records in self.corpus.blocks(number):
                self._num_blocks[number] = block + 1
                self._try(records, number, block)
        for number in range(len(self.files)):
            self._finish(number)
        return self._summary()

    def _target(self, number: int) -> Path:
        return self.out / f"{number:05d}.parquet"

    def _finished(self, number: int) -> bool:
        """Whether the output is there and whole; one that is damaged is made again."""
        target = self._target(number)
        if target.exists() and source_of(target) != self.sources[number]:
            _log.warning("'%s' is damaged: its rows are rated again", target)
            target.unlink(missing_ok=True)
        return target.exists()

    def _rate(self, rows: list[dict[str, Any]], number: int, block: int, part: Path) -> None:
        hashes = content_hashes([self._content(row) for row in rows])
        if self._known is None:
            self._known = RatedRows(self.kept, self.hashes, self.rater.criteria)
        known = self._known.find(hashes)
        fresh = [row for place, row in enumerate(rows) if place not in known]
        rated = iter(self.rater.rate_ids(self._encode(fresh)))
        finished = []
        for place, row in enumerate(rows):
            lengths, scores = known[place] if place in known else next(rated)
            own = {key: value for key, value in row.items() if key not in (TEXT, IDS)}
            finished.append(own | annotation(self.rater.criteria, lengths, scores) | {"empty": not lengths})
            self.advance()
        table = table_of(finished, self.rater.criteria)
        with atomic_file(part) as file:
            pq.write_table(table.replace_schema_metadata({ROWS: hashes.tobytes().hex().encode()}), file)
        self.rated, self.reused = self.rated + len(fresh), self.reused + len(known)
        _log.info("%s: block %d, %d rows", self.names[number], block, len(rows))

    def _finish(self, number: int) -> None:
        """Put the parts of a file together, once they are all there; another worker may be at the last of them."""
        parts = [self._part(number, block) for block in range(self._num_blocks.get(number, 0))]
        target, name = self._target(number), f"finish-{number:05d}"
        while not target.exists():
            if missing := [block for block, part in enumerate(parts) if not part.exists()]:
                self._help(number, set(missing))
            elif (lease := self.leases.acquire(name)) is not None:
                with lease:
                    if not target.exists():
                        self._join(parts, number)
            if not target.exists():
                time.sleep(_POLL_S)
        for part in parts:
            part.unlink(missing_ok=True)

    def _help(self, number: int, missing: set[int]) -> None:
        """Rate blocks whose workers have died; the file is read again only if there are such."""
        leases = {block: self.leases.acquire(self._part(number, block).stem) for block in sorted(missing)}
        if not any(leases.values()):
            return
        for block, records in self.corpus.blocks(number):
            if (lease := leases.get(block)) is not None:
                self._rate_held(lease, records, number, block)

    def _try(self, records: list[dict[str, Any]], number: int, block: int) -> None:
        """Rate a block that nobody has rated and nobody holds."""
        part = self._part(number, block)
        if not part.exists() and (lease := self.leases.acquire(part.stem)) is not None:
            self._rate_held(lease, records, number, block)

    def _rate_held(self, lease: Lease, records: list[dict[str, Any]], number: int, block: int) -> None:
        """Rate a block that is ours, unless it was rated, or its file finished, before it became so."""
        part = self._part(number, block)
        with lease:
            if not part.exists() and not self._finished(number):
                self._rate(records, number, block, part)

    def _part(self, number: int, block: int) -> Path:
        return self.parts / f"{number:05d}-{self.sources[number][:16]}-{block:07d}.parquet"

    def _join(self, parts: Sequence[Path], number: int) -> None:
        self._check_corpus()
        target, source = self._target(number), self.sources[number]
        rows = [np.zeros((0, 2), np.uint64)]
        for part in parts:
            held = bytes.fromhex(pq.read_schema(part).metadata[ROWS].decode())
            rows.append(np.frombuffer(held, "<u8").reshape(-1, 2))
        with atomic_file(self.hashes / f"{source}.npy") as file:
            np.save(file, np.concatenate(rows))
        with atomic_path(target) as whole:
            if parts:
                join_tables(list(parts), whole, {SOURCE: source.encode()})
            else:  # a file without rows
                empty = pa.table({"length": pa.array([], pa.int64()), "empty": pa.array([], pa.bool_())})
                pq.write_table(empty.replace_schema_metadata({SOURCE: source.encode()}), whole)

    def _summary(self) -> dict[str, Any]:
        rows = tokens = empty = 0
        with Rejects(self.out / "rejects.jsonl", limit=1) as rejects:
            for number in range(len(self.files)):
                target = self._target(number)
                wanted = [name for name in _TOLD if name in pq.read_schema(target).names]
                for batch in pq.ParquetFile(target).iter_batches(columns=wanted):
                    rows, tokens = rows + len(batch), tokens + int(np.asarray(batch.column("length")).sum())
                    empty += int(np.asarray(batch.column("empty")).sum())
                    if REJECTED in wanted:
                        for row in batch.filter(batch.column("empty")).to_pylist():
                            if isinstance(row[REJECTED], str):
                                other = row[REJECTED].startswith(OF_SPLIT)
                                rejects.add(Reject(str(row["id"]), row[REJECTED], "split" if other else "record"))
        self._check_corpus()
        outputs = {self._target(number).name: True for number in range(len(self.files))}
        write_manifest(self.out, _COMMAND, self._state()["key"], outputs | dict.fromkeys(_NOTES, False))
        self._clean()
        state = read_mapping(self.out / "annotation.json") | {
            "done": True,
            "rows": rows,
            "tokens": tokens,
            "empty": empty,
            **rejects.account(),
        }
        write_json(self.out / "annotation.json", state)
        counts = {"rows": rows, "tokens": tokens, "empty": empty, **rejects.account()}
        return counts | {"rated": self.rated, "reused": self.reused}

    def _check_corpus(self) -> None:
        if read_mapping(self.out / "annotation.json").get("corpus") != self._digest():
            raise UserError("The corpus has changed while it was annotated.", "Run the same command again.")

    def _clean(self) -> None:
        """Remove what was set aside: all that can be used of it has been."""
        for folder in (self.kept, self.parts):
            shutil.rmtree(folder, ignore_errors=True)
        for path in self.hashes.glob("*.npy"):
            if path.stem not in self.sources:
                path.unlink(missing_ok=True)


_TOLD = ("id", REJECTED, "length", "empty")


def _write_once(path: Path, value: Any) -> None:
    """Write JSON unless another process has done so."""
    temporary = draft_of(path)
    write_json(temporary, value)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink(missing_ok=True)
