"""Encoding a corpus: documents to a store of summary vectors, by any number of processes, going on where others were
cut off.

The documents are cut into blocks by their order alone. A block is encoded at once and written as one part, so that a
store that was resumed has the bytes of one that never stopped.

Shapes: B texts, M tokens of a segment, R rows, N vectors of a row, D model width.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmlab.config import validate
from lmlab.data import Document, Source, SourceConfig, Tokenizer, source_settings
from lmlab.distributed import Backend, FolderStore, Lease, Leases, fan_out
from lmlab.errors import UserError
from lmlab.files import sha256_json
from lmlab.hardware import select_device
from lmlab.hardware.gemm import fast_inference
from lmlab.methods.autocompressor.compressor.files import (
    CompressorPlace,
    fingerprint,
    load_compressor,
    model_fingerprint,
)
from lmlab.methods.autocompressor.compressor.model import AutoCompressor
from lmlab.methods.autocompressor.compressor.segmenting import lengths_of, longest_segment
from lmlab.methods.autocompressor.compressor.vectors import SummaryVectors
from lmlab.models import RowType, SegmentError, StoreMeta, StoreRow, SummaryStore
from lmlab.progress import Advance, progress

__all__ = ["EncodeJob", "SummaryStore", "encode", "meta_of", "summaries_of"]

_POLL_S = 0.2  # between looks at what others hold: less asks the file system often, more waits after the last block


@dataclass(frozen=True)
class EncodeJob:
    """What is to be encoded, and where.

    Attributes:
        compressor: its directory, stage or run.
        documents: a location of the data layer.
        out: folder of the store.
        segment: tokens of a segment; None for as many as the window allows.
        independent: compress every segment by itself, as passages that are retrieved one by one.
        dtype: how vectors are stored.
        block: documents of a part.
        batch: segments that are read together.
        fields: which fields of records are read.
    """

    compressor: str
    documents: str
    out: str
    segment: int | None = None
    independent: bool = False
    dtype: RowType = "fp16"
    block: int = 64
    batch: int = 16
    device: str = "auto"
    fields: tuple[tuple[str, str], ...] = ()


def encode(job: EncodeJob, workers: int = 1, backend: Backend = "processes", gpus: float = 0) -> dict[str, Any]:
    """Encode documents; returns counts. Run it again after a kill, or at the same time elsewhere.

    Arguments:
        workers, backend, gpus: as in `fan_out`.

    Raises:
        UserError: the folder holds another store, or becomes one meanwhile, the compressor has no summary tokens, two
            documents share an id, or a record cannot be read.
    """
    if workers <= 1:
        return _work(job)
    results = [found for _, found in fan_out(_work, [job] * workers, workers, backend, gpus)]
    return results[0] | {"encoded": sum(found["encoded"] for found in results)}


def meta_of(compressor: AutoCompressor, tokenizer: Tokenizer, job: EncodeJob) -> StoreMeta:
    """What is noted of a store.

    Raises:
        UserError: the compressor has no summary tokens.
    """
    if not compressor.summary_length:
        raise UserError("The model has no summary tokens (summary_length 0): it cannot compress.")
    return StoreMeta(
        model=model_fingerprint(compressor),
        compressor=fingerprint(compressor),
        tokenizer=tokenizer.fingerprint,
        summary_length=compressor.summary_length,
        width=compressor.model.config.d_model,
        dtype=job.dtype,
        segment=job.segment,
        independent=job.independent,
        positions=compressor.positions,
        budget=compressor.config.position_budget,
        attention=compressor.model.attention_backend,
        source=sha256_json([_source(job.documents, dict(job.fields)).fingerprint(), job.block]),
    )


def _work(job: EncodeJob) -> dict[str, Any]:
    """Encode blocks until there are none."""
    return _Worker(job).run()


class _Worker:
    def __init__(self, job: EncodeJob) -> None:
        self.job = job
        self.compressor = load_compressor(job.compressor, select_device(job.device))
        self.tokenizer = CompressorPlace.find(job.compressor).tokenizer()
        self.store = SummaryStore.create(job.out, meta_of(self.compressor, self.tokenizer, job))
        self.leases = Leases(FolderStore(self.store.path / ".leases"))
        self.encoded = self.empty = 0
        self.advance: Advance | None = None

    def run(self) -> dict[str, Any]:
        with progress("compress", None, "tokens") as self.advance:
            documents = self._encode_all()
        rows = [row for id in self.store.ids for row in self.store.rows(id)]
        tokens = sum(row.tokens for row in rows)
        return {
            "documents": documents,
            "empty": self.empty,
            "encoded": self.encoded,
            "rows": len(rows),
            "tokens": tokens,
        }

    def _encode_all(self) -> int:
        """Encode what nobody else does, and wait for the rest; the number of documents."""
        documents = 0
        left = set[int]()
        try:
            for number, block in _blocks(self.job):
                documents += len(block)
                if not self._try(number, block):
                    left.add(number)
            while left:  # held by others, of whom some may have died
                time.sleep(_POLL_S)
                left = {
                    number for number, block in _blocks(self.job) if number in left and not self._try(number, block)
                }
        finally:
            self.leases.close()
        return documents

    def _try(self, number: int, block: Sequence[Document]) -> bool:
        """Encode a block that nobody has encoded and nobody holds; whether it is done."""
        if not self.store.has_part(number) and (lease := self.leases.acquire(f"part-{number:05d}")) is not None:
            self._encode_held(lease, number, block)
        if not self.store.has_part(number):
            return False
        self.store.expect_part(number)
        held = self.store.ids_of_part(number)
        missing = [each for each in block if each.id not in set(held)]
        if held != [each.id for each in block if each not in missing] or self._kept(missing):
            raise UserError(
                f"Part {number} of the store '{self.store.path}' holds other texts than block {number} of"
                f" '{self.job.documents}'.",
                "Encode into another folder.",
            )
        self.empty += len(missing)
        return True

    def _encode_held(self, lease: Lease, number: int, block: Sequence[Document]) -> None:
        with lease:
            self.store.drop_drafts(number)
            if not self.store.has_part(number):
                self._encode(number, block)
                self.encoded += len(block)

    def _encode(self, number: int, block: Sequence[Document]) -> None:
        """Encode the documents of a block; those without text have no rows."""
        job, meta = self.job, self.store.meta
        pairs = self._kept(block)
        kept, ids = [document for document, _ in pairs], [each for _, each in pairs]
        if clash := self.store.added().intersection(each.id for each in kept):
            raise UserError(
                f"'{min(clash)}' was added to the store '{self.store.path}' by hand, and is a document of"
                f" '{job.documents}' too.",
                "Give one of them another id.",
            )
        for document, each in pairs:
            try:
                cut_of(self.compressor, len(each), job.segment, job.independent)
            except SegmentError as error:
                raise SegmentError(f"Document '{document.id}': {error.message}", error.remedy) from None
        with fast_inference():
            found = summaries_of(self.compressor, ids, job.segment, job.independent, job.batch, self.advance)
        rows = [
            StoreRow(
                id=document.id,
                segment=segment,
                tokens=length,
                text=hashlib.sha256(document.text.encode()).hexdigest(),
                model=meta.model,
                compressor=meta.compressor,
            )
            for document, (lengths, _) in zip(kept, found, strict=True)
            for segment, length in enumerate(lengths)
        ]
        none = torch.zeros(0, meta.summary_length, meta.width)
        self.store.write_part(number, rows, torch.cat([none, *(vectors for _, vectors in found)]))

    def _kept(self, block: Sequence[Document]) -> list[tuple[Document, list[int]]]:
        """Those with something to read, and their tokens; a text that is not blank may have none either."""
        pairs = ((each, self.tokenizer.encode_prompt(each.text, "as_text")) for each in block if each.text.strip())
        return [(each, ids) for each, ids in pairs if ids]


def _blocks(job: EncodeJob) -> Iterator[tuple[int, list[Document]]]:
    """The documents in blocks, in the order of the source.

    Raises:
        UserError: as `documents_of`.
    """
    block, number = list[Document](), 0
    for item in documents_of(job.documents, dict(job.fields)):
        block.append(item)
        if len(block) == job.block:
            yield number, block
            number, block = number + 1, []
    if block:
        yield number, block


def documents_of(location: str, fields: Mapping[str, str]) -> Iterator[Document]:
    """The documents at a location of the data layer.

    Raises:
        UserError: a record cannot be read: it would be missing, and nobody would know; or two documents share an id, so
            that figures of the one would be taken for the other's.
    """
    seen = set[str]()
    for item in _source(location, fields).read():
        if not isinstance(item, Document):
            raise UserError(f"{item.where}: {item.reason}", "Mend or remove the record.")
        if item.id in seen:
            raise UserError(
                f"Two documents of '{location}' have the id '{item.id}', by which vectors and figures are found.",
                "Give each its own.",
            )
        seen.add(item.id)
        yield item


def _source(location: str, fields: Mapping[str, str]) -> Source:
    """Records are named by their field `id` where they have one and no other was asked for."""
    source: Source = validate(SourceConfig, source_settings(location, dict(fields)), f"'{location}'")
    if "id_field" in fields or source.kind in ("text", "folder"):
        return source
    settings = source_settings(location, {**fields, "id_field": "id"})
    named: Source = validate(SourceConfig, settings, f"'{location}'")
    return named if isinstance(next(named.read(), None), Document) else source


def cut_of(compressor: AutoCompressor, length: int, segment: int | None, independent: bool) -> list[int]:
    """The lengths of the segments of a text.

    Raises:
        SegmentError: it is empty, or its segments with the vectors before them exceed the window.
    """
    kappa, shape, config = compressor.summary_length, compressor.model.config, compressor.config
    total = 1 if independent else length
    limit = segment
    if limit is None:
        limit = longest_segment(shape, kappa, total, 0, config.position_budget, config.accumulate)
    lengths = lengths_of(length, limit, limit)
    if compressor.positions:
        held = 0 if independent else kappa * ((len(lengths) - 1) if config.accumulate else min(1, len(lengths) - 1))
        needed = (config.position_budget or held) + max(lengths) + kappa
    else:
        needed = max(lengths)
    if needed > shape.max_seq_len and shape.positions != "none":
        raise SegmentError(
            f"{length} tokens in {len(lengths)} segments of up to {max(lengths)} need {needed} positions; the model's"
            f" window has {shape.max_seq_len}.",
            "Take other segments (--segment), or compress each by itself (--independent).",
        )
    return lengths


def _ends(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The length of each segment, and where it ends."""
    yield from zip(lengths, itertools.accumulate(lengths), strict=True)


@torch.no_grad()
def summaries_of(
    compressor: AutoCompressor,
    texts: Sequence[Sequence[int]],
    segment: int | None = None,
    independent: bool = False,
    batch: int = 16,
    advance: Advance | None = None,
) -> list[tuple[list[int], Tensor]]:
    """The lengths of each text's segments, and their summaries, [segments, N, D], in fp32.

    Segments of one number and length are read together, so that no padding is computed.

    Arguments:
        segment, independent, batch: as in `EncodeJob`.
        advance: is told the tokens that were read, each time.

    Raises:
        SegmentError: a text is empty, or its segments with the vectors before them exceed the window.
    """
    cuts = [cut_of(compressor, len(ids), segment, independent) for ids in texts]
    if independent:  # segments know nothing of each other, and are read together whichever text they are of
        pieces = [ids[end - length : end] for ids, cut in zip(texts, cuts, strict=True) for length, end in _ends(cut)]
        alone = iter(_read_in_order(compressor, pieces, [[len(piece)] for piece in pieces], batch, advance))
        return [(cut, torch.cat([next(alone) for _ in cut])) for cut in cuts]
    return list(zip(cuts, _read_in_order(compressor, texts, cuts, batch, advance), strict=True))


def _read_in_order(
    compressor: AutoCompressor,
    texts: Sequence[Sequence[int]],
    cuts: Sequence[Sequence[int]],
    batch: int,
    advance: Advance | None,
) -> list[Tensor]:
    """The summaries of each text, [segments, N, D], in fp32, whose segments see those before them.

    Arguments:
        cuts: the lengths of each text's segments.
        batch, advance: as in `summaries_of`.
    """
    kappa = compressor.summary_length
    states: list[SummaryVectors] = [compressor.nothing() for _ in texts]
    found: list[list[Tensor]] = [[] for _ in texts]
    read = [0] * len(texts)
    for number in range(max(map(len, cuts), default=0)):
        by_length: dict[int, list[int]] = {}
        for text, lengths in enumerate(cuts):
            if number < len(lengths):
                by_length.setdefault(lengths[number], []).append(text)
        for length, members in sorted(by_length.items()):
            for chosen in (members[first : first + batch] for first in range(0, len(members), batch)):
                rows = [list(texts[i][read[i] : read[i] + length]) for i in chosen]
                ids_BM = torch.tensor(rows, device=compressor.model.embedding.weight.device)
                before = torch.cat([states[i].vectors_BPD for i in chosen])
                after = compressor(ids_BM, soft_prompt=before, output_summary=True, logits=False).summary
                for place, i in enumerate(chosen):
                    found[i].append(after.vectors_BPD[place, -kappa:].float().cpu())
                    states[i] = after.row(place)
                    read[i] += length
                if advance is not None:
                    advance(length * len(chosen))
    return [torch.stack(own) for own in found]
