"""Documents on their way through `collect`: on the disk, with a few numbers of each in memory."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from lmlab.data.documents import Document, Reject
from lmlab.files import json_value


class Spool:
    """A file of documents as JSON lines, and columns with a number for each: about 50 bytes a document.

    Attributes:
        domains: names of all domains, in the order in which they came.
    """

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self._seed = path, seed
        self.domains: list[str] = []
        self._numbers: dict[str, int] = {}
        self._offsets, self._bytes, self._characters, self._groups = (array("Q") for _ in range(4))
        self._domain_ids = array("L")
        self._digests = bytearray()
        self._file: IO[bytes] = open(path, "wb+")  # noqa: SIM115 (closed by close)

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, document: Document) -> Reject | None:
        """Append a document; one that holds half of a surrogate pair, which is no character, is returned as a
        reject.
        """
        try:
            line = json.dumps(document.row(), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return Reject(
                document.id.encode("utf-8", "replace").decode(), "half of a surrogate pair, which is no character"
            )
        size = len(document.text.encode())
        if document.domain not in self._numbers:
            self._numbers[document.domain] = len(self.domains)
            self.domains.append(document.domain)
        self._offsets.append(self._file.tell())
        self._bytes.append(size)
        self._characters.append(len(document.text))
        self._domain_ids.append(self._numbers[document.domain])
        self._groups.append(int.from_bytes(hashlib.sha256(f"{self._seed}:{document.group}".encode()).digest()[:8]))
        self._digests += hashlib.sha256(" ".join(document.text.split()).encode()).digest()[:16]
        self._file.write(line + b"\n")
        return None

    def finish(self) -> None:
        """Hand all documents to the disk: from now on they are read."""
        self._file.flush()

    @property
    def sizes(self) -> NDArray[np.uint64]:
        """UTF-8 bytes of each text."""
        return np.frombuffer(self._bytes, np.uint64)

    @property
    def characters(self) -> NDArray[np.uint64]:
        """Characters of each text."""
        return np.frombuffer(self._characters, np.uint64)

    @property
    def groups(self) -> NDArray[np.uint64]:
        """A number for the group of each document, drawn from the seed and its name."""
        return np.frombuffer(self._groups, np.uint64)

    @property
    def domain_ids(self) -> NDArray[np.uint64]:
        """The number of each document's domain."""
        return np.frombuffer(self._domain_ids, np.dtype(f"u{self._domain_ids.itemsize}")).astype(np.uint64)

    @property
    def digests(self) -> NDArray[np.uint64]:
        """A hash of the words of each document, [n, 2]."""
        return np.frombuffer(self._digests, np.uint64).reshape(-1, 2)

    def draws(self, documents: NDArray[np.int64]) -> NDArray[np.uint64]:
        """A number for each of some documents, drawn from the seed and its text."""
        mixed = self.digests[documents, 0] ^ np.uint64(
            int.from_bytes(hashlib.sha256(str(self._seed).encode()).digest()[:8])
        )
        return mixed * np.uint64(0x9E3779B97F4A7C15)  # an odd factor: equal only where the texts are

    def line(self, number: int) -> bytes:
        """A document as a line of JSON."""
        self._file.seek(self._offsets[number])
        return self._file.readline()

    def document(self, number: int) -> Document:
        """A document."""
        return Document(**json_value(self.line(number)))

    def ranges(self, size: int) -> Iterator[tuple[int, int]]:
        """First and last byte of parts of at least `size` bytes, cut between documents."""
        total = self._file.seek(0, 2)
        starts = np.frombuffer(self._offsets, np.uint64)
        start = 0
        while start < total:
            following = int(np.searchsorted(starts, start + size))
            end = int(starts[following]) if following < len(starts) else total
            yield start, end
            start = end

    def remove(self) -> None:
        """Close and remove the file."""
        self._file.close()
        self.path.unlink(missing_ok=True)


def read_range(path: Path, start: int, end: int) -> Iterable[Document]:
    """The documents between two bytes of a spool's file."""
    with open(path, "rb") as file:
        file.seek(start)
        while start < end:
            line = file.readline()
            start += len(line)
            yield Document(**json_value(line))
