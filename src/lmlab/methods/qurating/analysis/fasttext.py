"""Published classifiers of fastText (Joulin et al. 2017), such as those that tell educational text, or languages: a
file of word vectors and labels, read by the package `fasttext`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from lmlab.errors import UserError, did_you_mean, missing_extra
from lmlab.files import content_digest, sha256_json
from lmlab.methods.qurating.analysis.scorers import Floats

_MAGIC, _VERSIONS, _SUPERVISED = 793712314, (11, 12), 3
_PREFIX = "__label__"
_CENTROIDS = 256  # of a product quantizer: its codes are bytes
_MOST_EXAMPLES = 10**15  # the count that stands for no node in the library's tree
_DAMAGED = "Get another copy of the file."


class FastTextScorer:
    """Probabilities of the labels of texts, under a supervised model of fastText.

    Line breaks are read as spaces, as such models see one line at a time.

    Arguments:
        path: the model, `.bin` or `.ftz`.
        label: whose probability is the score, with or without `__label__`; None for that of the most likely one.

    Attributes:
        labels: of the model, without `__label__`.
        fingerprint: of the model and the label.

    Raises:
        UserError: the package is missing, the file is no such model or damaged, or the label is none of its.
    """

    def __init__(self, path: str | Path, label: str | None = None) -> None:
        self.path = Path(path)
        check_model(self.path)
        try:
            self.labels = [each.removeprefix(_PREFIX) for each in self._model.labels]
        except UnicodeDecodeError as error:
            told = f"{error.object!r}"[1:]
            raise UserError(f"'{path}' has a label that is no UTF-8: {told}.", "Train it with others.") from None
        self.label = None if label is None else label.removeprefix(_PREFIX)
        if self.label is not None and self.label not in self.labels:
            raise UserError(f"'{path}' has no label '{self.label}'. {did_you_mean(self.label, self.labels)}")
        self.fingerprint = sha256_json([content_digest(self.path), self.label])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_model"}  # each process reads its own

    @cached_property
    def _model(self) -> Any:
        try:
            from fasttext.FastText import _FastText
        except ImportError:
            raise missing_extra("fasttext", "A classifier of fastText") from None
        try:
            return _FastText(model_path=str(self.path))
        except (ValueError, RuntimeError, MemoryError) as error:
            raise UserError(f"'{self.path}' cannot be loaded: {error}.", _DAMAGED) from None

    def score(self, texts: Sequence[str]) -> Floats:
        """The probability of the label of each text, [N]; NaN for a text without words."""
        return self.rate(texts)[0]

    def rate(self, texts: Sequence[str]) -> tuple[Floats, list[str | None]]:
        """The score of each text, [N], and its most likely label; NaN and None for a text without words."""
        lines = [_one_line(text) for text in texts]
        scores, likely = np.full(len(lines), np.nan), list[str | None]([None] * len(lines))
        # the extension's own call: that of the package around it makes NumPy arrays in a way that NumPy 2 refuses
        wanted = 1 if self.label is None else len(self.labels)
        for place, line in enumerate(lines):
            found = self._predict(line, wanted) if line else []
            if not found:
                continue
            names = {name.removeprefix(_PREFIX): float(value) for value, name in found}
            likely[place] = next(iter(names))
            # rounding takes the softmax a little beyond 1
            scores[place] = min(
                1.0, names.get(self.label, 0.0) if self.label is not None else next(iter(names.values()))
            )
        return scores, likely

    def _predict(self, line: str, wanted: int) -> list[tuple[float, str]]:
        try:
            return list(self._model.f.predict(f"{line}\n", wanted, 0.0, "strict"))
        except RuntimeError as error:  # its vectors are no numbers
            raise UserError(f"'{self.path}' cannot tell labels: {error}", _DAMAGED) from None


def _one_line(text: str) -> str:
    """The words of a text in one line; a lone surrogate, which no bytes stand for, is a question mark."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").replace("\0", " ").split())


def check_model(path: Path) -> None:
    """Refuse what is no supervised model, whole to the last byte: the library reads beyond the end of a shorter one.

    Raises:
        UserError: the file is not there, or is none.
    """
    try:
        with path.open("rb") as file:
            end = _end_of(file, path)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise UserError(f"There is no model '{path}'.", "Name a .bin or .ftz file of fastText with --model.") from None
    except IsADirectoryError:
        raise UserError(f"'{path}' is a folder.", "Name a .bin or .ftz file of fastText with --model.") from None
    except (struct.error, EOFError):
        raise UserError(f"'{path}' ends before the model does.", _DAMAGED) from None
    if end != size:
        raise UserError(f"'{path}' has {size:,} bytes where the model has {end:,}.", _DAMAGED)


def _end_of(file: IO[bytes], path: Path) -> int:
    """Where the model ends, by the sizes that it states (fastText's `FastText::loadModel`).

    Raises:
        UserError: it is no classifier, or its parts do not fit together, so that the library would read beyond them.
    """
    magic, version = _take(file, "ii")
    if magic != _MAGIC or version not in _VERSIONS:
        raise UserError(f"'{path}' is no model of fastText.", "Name a .bin or .ftz file of fastText with --model.")
    settings = _take(file, "12id")
    dim, num_ngrams, kind, buckets, longest = (settings[place] for place in (0, 5, 7, 8, 10))
    if kind != _SUPERVISED:
        raise UserError(f"'{path}' has word vectors only.", "A classifier, trained with labels, is needed.")
    entries, words, labels, _, pruned = _take(file, "iiiqq")
    if labels <= 0 or words < 0 or entries != words + labels:
        raise UserError(f"'{path}' has no labels.", "A classifier, trained with labels, is needed.")
    fits = _skip_entries(file, words, labels)
    hashed = num_ngrams > 1 or (longest != 0 and version > 11)  # the older version had no parts of words
    rows = words
    if pruned >= 0:
        rows += pruned
        fits &= _kept_below(file, pruned)
    elif hashed:
        rows += max(0, buckets)
    fits &= not hashed or buckets > 0
    (packed,) = _take(file, "?")
    fits &= _skip_matrix(file, packed, rows, dim)
    (packed_output,) = _take(file, "?")
    fits &= _skip_matrix(file, packed and packed_output, labels, dim)
    if not fits:
        raise UserError(f"The parts of '{path}' do not fit together.", _DAMAGED)
    return file.tell()


def _skip_entries(file: IO[bytes], words: int, labels: int) -> bool:
    """Words, then labels, each ended by a zero byte and followed by a count and a kind: read in blocks, as there are
    millions. Whether the kinds are so, and the counts of labels some, of which the library makes a tree.
    """
    held, start = b"", file.tell()
    place, fits, total = 0, True, 0
    for number in range(words + labels):
        while (stop := held.find(b"\0", place)) < 0 or len(held) < stop + 10:
            more = file.read(2**20)
            if not more:
                raise EOFError
            start, held, place = start + place, held[place:] + more, 0
        place = stop + 10
        fits &= held[stop + 9] == (number >= words)
        if number >= words:
            count = int.from_bytes(held[stop + 1 : stop + 9], "little", signed=True)
            fits, total = fits and count >= 0, total + count
    file.seek(start + place)
    return fits and total < _MOST_EXAMPLES


def _kept_below(file: IO[bytes], count: int) -> bool:
    """Whether the hashed parts that were kept have numbers below their count."""
    if 8 * count > os.fstat(file.fileno()).st_size - file.tell():
        raise EOFError
    held = file.read(8 * count)
    kept = np.frombuffer(held, "<i4")[1::2]
    return bool(((kept >= 0) & (kept < count)).all())


def _skip_matrix(file: IO[bytes], packed: bool, rows_needed: int, dim: int) -> bool:
    """Whether it has so many rows at least, of so many numbers."""
    if not packed:
        rows, columns = _take(file, "qq")
        _skip(file, 4 * rows * columns)
        return bool(rows >= rows_needed and columns == dim)
    norms, rows, columns, codes = _take(file, "?qqi")
    _skip(file, codes)
    parts = _skip_quantizer(file, dim)
    if norms:
        _skip(file, rows)
        parts = parts if _skip_quantizer(file, 1) == 1 else 0
    return bool(parts and rows >= rows_needed and columns == dim and codes == rows * parts)


def _skip_quantizer(file: IO[bytes], dim: int) -> int:
    """Of how many parts a vector of so many numbers is put together; 0 where they are not as long as it."""
    size, parts, width, last = _take(file, "4i")
    _skip(file, 4 * size * _CENTROIDS)
    return int(parts) if size == dim and min(parts, width, last) > 0 and (parts - 1) * width + last == dim else 0


def _skip(file: IO[bytes], count: int) -> None:
    if not 0 <= count <= os.fstat(file.fileno()).st_size:
        raise EOFError
    file.seek(count, os.SEEK_CUR)


def _take(file: IO[bytes], form: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))
