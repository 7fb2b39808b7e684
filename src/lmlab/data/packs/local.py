"""Shards of MDS on this machine, mapped into memory: samples of a corpus that is larger than memory, in any order."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmlab.data.sources.mds import MDSShard, read_shard
from lmlab.files import atomic_file, cache_directory, is_url, sha256_json
from lmlab.redaction import redact


def map_shard(entry: Mapping[str, Any], folder: str) -> MDSShard:
    """A shard whose samples are read from the disk one by one.

    A compressed or remote one is first unpacked into lmlab's cache, under another name until it is whole, so that any
    number of processes may ask for it; its hashes are compared then. A local one is taken as it stands.

    Raises:
        MDSError: it is damaged, missing, or has columns that are not read.
    """
    path = Path(folder, str(entry["raw_data"]["basename"]))
    if is_url(folder) or not path.is_file():
        # another version of the same place is another file
        name = sha256_json([redact(folder), entry["raw_data"], entry.get("zip_data")])[:32]
        path = cache_directory() / "mds" / f"{name}.mds"
        if not path.is_file():
            data = read_shard(entry, folder)
            with atomic_file(path) as file:
                file.write(data)
    if path.stat().st_size != entry["raw_data"]["bytes"] or path.stat().st_size == 0:
        return MDSShard(entry, folder)  # which says what is wrong
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM") and os.name == "posix":
        mapped.madvise(mmap.MADV_RANDOM)
    return MDSShard(entry, folder, mapped)
