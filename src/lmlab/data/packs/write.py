"""Packed sequences on the disk, as MDS with the columns of ProLong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmlab.data.packs.account import PackAccount
from lmlab.data.packs.config import PackConfig
from lmlab.data.packs.pack import pack
from lmlab.data.packs.read import TokenSource
from lmlab.data.packs.rows import NOTES
from lmlab.data.sources.mds import MDSWriter
from lmlab.errors import UserError
from lmlab.files import write_json
from lmlab.progress import progress
from lmlab.words import counted

_COLUMNS = {"domain": "str", "input_ids": "ndarray:uint32", "indices": "ndarray:uint32", "length": "int"}


def write_packs(
    sources: Iterable[str], config: PackConfig, directory: Path | str, compression: str | None = None
) -> dict[str, Any]:
    """Pack the documents of several places, one after the other, and write `directory`: MDS shards (in a folder for
    each subset where there are several), the tokenizer if it is known, and `packs.json`.

    Returns:
        the account of `packs.json`: what was kept, cut and dropped.

    Raises:
        UserError: two sources have different tokenizers, a record is none, or nothing fills a sequence.
    """
    directory, places = Path(directory), [TokenSource(place) for place in sources]
    if (directory / NOTES).exists():
        raise UserError(f"'{directory}' already holds packed sequences.", "Name another directory, or remove this one.")
    tokenizers = [tokenizer for place in places if (tokenizer := place.tokenizer) is not None]
    if len({tokenizer.fingerprint for tokenizer in tokenizers}) > 1:
        raise UserError("The sources were tokenized by different tokenizers.", "Pack them by themselves.")
    account, writers = PackAccount(), dict[str, MDSWriter]()
    masked = any(place.masked for place in places)
    domains: dict[str, None] = {}
    with progress("pack", None, "sequences") as advance:
        documents = (
            document if document.domain else replace(document, domain=Path(place.place).name)
            for place in places
            for document in place
        )
        seen = (domains.setdefault(document.domain) or document for document in documents)
        for packed in pack(seen, config, account):
            if packed.subset not in writers:
                columns = _COLUMNS | ({"mask": "ndarray:uint8"} if masked else {})
                writers[packed.subset] = MDSWriter(columns, directory / packed.subset, compression)
            mask = {"mask": [1] * config.pack_length if packed.mask is None else packed.mask} if masked else {}
            writers[packed.subset].write(
                {
                    "domain": packed.subset or directory.name,
                    "input_ids": packed.tokens,
                    "indices": packed.indices,
                    "length": config.pack_length,
                    **mask,
                }
            )
            advance()
    if not writers:
        raise UserError(
            f"{account.documents:,} documents of {account.tokens:,} tokens do not fill one sequence of"
            f" {counted(config.pack_length, 'tokens')}.",
            "Lower pack_length, min_doc_length or min_chunk_length, or add text.",
        )
    for writer in writers.values():
        writer.close()
    if tokenizers:
        tokenizers[0].save(directory / "tokenizer")
    notes = {
        "config": config.model_dump(mode="json"),
        "sources": [place.place for place in places],
        "domains": sorted(writers) if "" not in writers else [directory.name],
        "read_domains": sorted(domains),
        "tokenizer": tokenizers[0].fingerprint if tokenizers else None,
        "account": account.record(),
    }
    write_json(directory / NOTES, notes)
    return notes
