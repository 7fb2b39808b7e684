"""A store of summary vectors: many texts by their ids, on the disk.

A folder with `meta.json` and parts. A part is `part-NNNNN.safetensors` with rows of vectors, `part-NNNNN.jsonl` that
says of each row which text, segment and weights it is of, and `part-NNNNN.json`, written last, with the digests of both
and of what `meta.json` says, and the mark of who wrote them.

Shapes: R rows, N vectors of a row, P vectors of a text, D model width.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lmlab.config import validate
from lmlab.distributed import FolderStore, Leases
from lmlab.errors import LmlabError, UserError, did_you_mean, reads
from lmlab.files import atomic_file, read_jsonl, read_mapping, sha256_file, sha256_json, write_json
from lmlab.models.fingerprint import known_fingerprint
from lmlab.models.prompts.signing import UNTRUSTED, is_own, mark_of
from lmlab.models.prompts.soft_prompt import SoftPrompt, load_soft_prompt
from lmlab.models.prompts.store_rows import StoreMeta, StoreRow, packed, unpacked
from lmlab.models.transformer import Transformer

META, FORMAT = "meta.json", "lmlab summary store 1"
_HASHES = ("model", "compressor", "tokenizer", "source")
FIRST_ADDED = 10**9
"""Where the numbers of parts begin that were added to an encoded store by hand; those below are blocks of its source.
"""

_PART = re.compile(r"part-(\d{5,})\.json")


@dataclass(frozen=True)
class _Place:
    part: int
    row: int
    told: StoreRow


class SummaryStore:
    """The vectors of many texts.

    Arguments:
        path: its folder.
        trust: read parts that this user did not write, too.

    Raises:
        UserError: there is no store, or another one than it says.
        LmlabError: it is damaged.
    """

    @reads("a store of summary vectors")
    def __init__(self, path: str | Path, *, trust: bool = False) -> None:
        self.path, self.trust = Path(path), trust
        if not (self.path / META).is_file():
            raise UserError(
                f"'{path}' is no store of summary vectors ({META} is missing).",
                "Make one: lmlab compress encode COMPRESSOR --in TEXTS --out STORE",
            )
        told = read_mapping(self.path / META)
        if told.pop("format", None) != FORMAT:
            raise UserError(f"'{self.path / META}' is not that of a store of summary vectors of lmlab.")
        self.meta = validate(StoreMeta, told, f"'{self.path / META}'")
        self._known: set[int] = set()

    @classmethod
    def create(cls, path: str | Path, meta: StoreMeta, *, trust: bool = False) -> SummaryStore:
        """A new store, or the one that is there, if it is for the same or holds nothing yet: a first attempt that
        failed does not decide how the next one encodes.

        Raises:
            UserError: the folder holds another one; the field is named.
        """
        path = Path(path)
        if (path / META).exists():
            found = cls(path, trust=trust)
            if found.meta == meta or found.parts():
                found.expect(meta)
                return found
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"'{path}' cannot be the folder of a store: {error.strerror}.", "Name another.") from None
        write_json(path / META, {"format": FORMAT, **meta.model_dump(mode="json")})
        return cls(path, trust=trust)

    def expect(self, meta: StoreMeta) -> None:
        """Refuse a store whose rows were made in another way.

        Raises:
            UserError: with the first field that differs.
        """
        # hashes last: another width or kappa has another one too, which says nothing to anybody
        for name in sorted(StoreMeta.model_fields, key=_HASHES.__contains__):
            here, there = getattr(self.meta, name), getattr(meta, name)
            if here != there:
                raise UserError(
                    f"The store '{self.path}' has {name} {_brief(here)}, and what is asked for {_brief(there)}.",
                    "Use what it was made with, or another folder.",
                )

    def check(self, model: str, width: int, compressor: str | None = None, summary_length: int | None = None) -> None:
        """Refuse to have vectors read by other weights.

        Arguments:
            model: fingerprint of the weights (`known_fingerprint`).
            compressor: that of what writes, where more is to be written.

        Raises:
            UserError: width, kappa or weights differ.
        """
        for name, here, there in (
            ("width", self.meta.width, width),
            ("summary_length", self.meta.summary_length, summary_length or self.meta.summary_length),
            ("model", self.meta.model, model),
            ("compressor", self.meta.compressor, compressor or self.meta.compressor),
        ):
            if here != there:
                raise UserError(
                    f"The store '{self.path}' has {name} {_brief(here)}, and the model here {_brief(there)}: its"
                    " vectors mean nothing to it.",
                    "Load the model that the store was made with, or compress the texts again.",
                )

    def parts(self) -> list[int]:
        """The numbers of the whole parts."""
        found = (_PART.fullmatch(each.name) for each in self.path.glob("part-*.json"))
        return sorted(int(match[1]) for match in found if match)

    def has_part(self, number: int) -> bool:
        """Whether a part is whole."""
        return (self.path / f"{_stem(number)}.json").exists()

    def expect_part(self, number: int) -> None:
        """Refuse a whole part whose vectors are to be read in another way than the store says.

        Raises:
            UserError: it was written for another `meta.json`, or by a version that did not note for which.
        """
        stem = self.path / _stem(number)
        if read_mapping(stem.with_suffix(".json")).get("meta") != self._digest_of_meta():
            raise UserError(
                f"'{stem}' was written for another '{self.path / META}', or by an earlier version of lmlab.",
                "Encode into another folder.",
            )

    def drop_drafts(self, number: int) -> None:
        """Remove what a process that was killed has left of a part that nobody writes now."""
        for draft in self.path.glob(f".{_stem(number)}.*.tmp"):
            draft.unlink(missing_ok=True)

    def write_part(self, number: int, rows: Sequence[StoreRow], vectors_RND: Tensor) -> None:
        """Write a part, whose bytes depend on its rows alone.

        Raises:
            UserError: the vectors have another shape, or are no finite numbers as they would be stored; or the store
                was made anew for others since it was opened.
        """
        expected = (len(rows), self.meta.summary_length, self.meta.width)
        if tuple(vectors_RND.shape) != expected:
            raise UserError(f"The vectors have the shape {list(vectors_RND.shape)}, the store needs {list(expected)}.")
        if (bad := _not_finite(rows, vectors_RND)) is not None:
            raise UserError(f"The vectors of '{bad.id}' are no finite numbers.", "Look at the compressor.")
        stem = self.path / _stem(number)
        tensors = packed(vectors_RND.detach().float().cpu(), self.meta.dtype)
        if (bad := _not_finite(rows, unpacked(tensors))) is not None:
            most = float(vectors_RND.abs().max())
            raise UserError(
                f"The vectors of '{bad.id}' have numbers up to {most:.3g}, which {self.meta.dtype} cannot hold.",
                "Make the store with dtype int8 or fp32.",
            )
        with atomic_file(stem.with_suffix(".safetensors")) as file:
            file.write(save(tensors, {"format": FORMAT}))
        with atomic_file(stem.with_suffix(".jsonl"), "w") as file:
            for row in rows:
                file.write(json.dumps(row.model_dump(), ensure_ascii=False) + "\n")
        digests = self._digests(stem)
        write_json(
            stem.with_suffix(".json"),
            {"rows": len(rows), **digests, "written_by": getpass.getuser(), "mark": mark_of(json.dumps(digests))},
        )
        self._forget()
        # looked at after the part is there: who makes an empty store anew has then seen it, or is seen here
        if SummaryStore(self.path).meta != self.meta:
            for name in ("json", "jsonl", "safetensors"):
                stem.with_suffix(f".{name}").unlink(missing_ok=True)
            raise UserError(
                f"Another process has made '{self.path}' a store for something else meanwhile.",
                "Encode into another folder.",
            )

    def add(self, id: str, vectors: SoftPrompt | Tensor, *, text: str = "", tokens: int = 0) -> None:
        """Add a text's vectors, [P, D] or one row, P a multiple of kappa, as a part of its own.

        Arguments:
            text: what they stand for, whose hash is kept.
            tokens: that they stand for.

        Raises:
            UserError: the id is there already, or the vectors do not fit.
        """
        if not id or not id.isprintable():
            raise UserError(f"{id!r} is no name for a text: an id has printable characters, and at least one.")
        given = vectors.vectors_BPD if isinstance(vectors, SoftPrompt) else vectors
        flat = given[0] if given.dim() == 3 and len(given) == 1 else given
        kappa = self.meta.summary_length
        if isinstance(vectors, SoftPrompt) and vectors.text_P is not None:
            raise UserError(f"'{id}' holds plain tokens beside its vectors, which a store does not keep.")
        if isinstance(vectors, SoftPrompt) and vectors.valid_BP is not None and len(vectors.valid_BP) == 1:
            flat = flat[vectors.valid_BP[0]]  # a store has no masks: padding stays out of it
        if tokens < 0:
            raise UserError(f"'{id}' cannot stand for {tokens} tokens.")
        if not flat.is_floating_point() or flat.dim() != 2 or len(flat) % kappa or not len(flat):
            raise UserError(f"Vectors of shape {list(given.shape)} are no summaries of {kappa} vectors each.")
        count, digest = len(flat) // kappa, hashlib.sha256(text.encode()).hexdigest()
        each = [tokens // count + (number < tokens % count) for number in range(count)]
        rows = [
            StoreRow(
                id=id,
                segment=number,
                tokens=each[number],
                text=digest,
                model=self.meta.model,
                compressor=self.meta.compressor,
            )
            for number in range(count)
        ]
        with self._alone():
            if id in self:
                raise UserError(f"The store '{self.path}' holds '{id}' already.", "Choose another id.")
            first = 0 if self.meta.source is None else FIRST_ADDED
            self.write_part(max([first - 1, *self.parts()]) + 1, rows, flat.reshape(count, kappa, -1))

    def added(self) -> set[str]:
        """The ids of texts that were added to an encoded store by hand."""
        self._forget()
        return {id for id, places in self._index.items() if places[0].part >= FIRST_ADDED}

    def ids_of_part(self, number: int) -> list[str]:
        """The ids of a whole part's texts, in order."""
        path = self.path / f"{_stem(number)}.jsonl"
        return list(dict.fromkeys(str(told.get("id")) for told in read_jsonl(path)))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process adds, and with what others have added so far."""
        leases = Leases(FolderStore(self.path / ".leases"))
        try:
            while (lease := leases.acquire("add")) is None:
                time.sleep(0.05)
            with lease:
                self._forget()
                yield
        finally:
            leases.close()

    @property
    def ids(self) -> list[str]:
        """Of all texts, in order."""
        return list(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, id: object) -> bool:
        return id in self._index

    def rows(self, id: str) -> list[StoreRow]:
        """What is known of a text's rows.

        Raises:
            UserError: there is no such text.
        """
        return [place.told for place in self._places(id)]

    def vectors(self, id: str) -> Tensor:
        """All vectors of a text, [P, D], in fp32; compare stores of any type in it.

        Raises:
            UserError: there is no such text, or others wrote it and nobody said that they are trusted.
            LmlabError: the part is damaged.
        """
        places = self._places(id)
        parts = {number: self._read(number) for number in dict.fromkeys(place.part for place in places)}
        return self._joined(places, parts)

    def get(self, *ids: str) -> SoftPrompt:
        """The vectors of a text, or of several one after the other, as a soft prompt of one row."""
        if not ids:
            raise UserError(f"No text of the store '{self.path}' was named.")
        both = torch.cat([self.vectors(id) for id in ids])
        return SoftPrompt(both[None], self.meta.positions, None, self.meta.budget)

    def search(self, vectors: SoftPrompt | Tensor, k: int = 10) -> list[tuple[str, float]]:
        """The texts whose vectors are nearest to these, and their Euclidean distances, nearest first; only texts of as
        many vectors are compared.

        Raises:
            UserError: what is sought has another width than the store, more than one row, or is no finite number.
        """
        given = vectors.vectors_BPD if isinstance(vectors, SoftPrompt) else vectors
        flat = given[0] if given.dim() == 3 and len(given) == 1 else given
        if flat.dim() != 2 or flat.shape[1] != self.meta.width or not bool(torch.isfinite(flat).all()):
            raise UserError(
                f"What is sought is finite vectors [P, {self.meta.width}] of one text, not {list(given.shape)}."
            )
        if k < 1:
            raise UserError(f"k {k}: at least 1 text can be sought.")
        query, found, part = flat.detach().float().cpu(), list[tuple[str, float]](), dict[int, Tensor]()
        for id, places in self._index.items():
            if len(places) * self.meta.summary_length != len(query):
                continue
            # texts stand in the order of parts: no more than those of one text are held
            part = {n: part[n] if n in part else self._read(n) for n in dict.fromkeys(each.part for each in places)}
            found.append((id, float((self._joined(places, part) - query).norm())))
        return sorted(found, key=lambda each: (each[1], each[0]))[:k]

    def verify(self) -> None:
        """Read everything once.

        Raises:
            LmlabError: a part is damaged.
        """
        for number in self.parts():
            self._check_part(number)
            self._read(number)

    @cached_property
    def _index(self) -> dict[str, list[_Place]]:
        found: dict[str, list[_Place]] = {}
        for number in self.parts():
            path = self.path / f"{_stem(number)}.jsonl"
            for place, told in enumerate(read_jsonl(path)):
                row = validate(StoreRow, told, f"'{path}', line {place + 1}")
                if row.model != self.meta.model or row.compressor != self.meta.compressor:
                    raise UserError(
                        f"'{path}', line {place + 1}: the row of '{row.id}' was made by other weights than the"
                        " store's.",
                        "Take the part out, or compress its texts again.",
                    )
                own = found.setdefault(row.id, [])
                if row.segment != len(own):
                    raise UserError(f"'{path}', line {place + 1}: segment {row.segment} of '{row.id}' is out of order.")
                own.append(_Place(number, place, row))
        return found

    def _places(self, id: str) -> list[_Place]:
        if id not in self._index:
            near = did_you_mean(id, self._index) if len(self._index) < 10_000 else ""  # to compare more takes seconds
            raise UserError(f"The store '{self.path}' holds no '{id}'. {near}".rstrip())
        return self._index[id]

    def _joined(self, places: Sequence[_Place], parts: Mapping[int, Tensor]) -> Tensor:
        """The rows of a text from those of its parts, [P, D]."""
        for place in places:
            if place.row >= (rows := len(parts[place.part])):
                path = self.path / f"{_stem(place.part)}.safetensors"
                raise LmlabError(f"'{path}' has {rows} rows, and its list more.", "Encode again.")
        return torch.cat([parts[place.part][place.row] for place in places])

    def _read(self, number: int) -> Tensor:
        """The rows of a part, [R, N, D], in fp32."""
        if number not in self._known:
            self._check_part(number)
        path = self.path / f"{_stem(number)}.safetensors"
        try:
            with safe_open(path, "pt") as file:
                vectors_RND = unpacked({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, RuntimeError) as error:
            raise LmlabError(f"'{path}' is damaged ({error}).", "Copy the store again, or encode again.") from None
        if vectors_RND.shape[1:] != (self.meta.summary_length, self.meta.width):
            raise LmlabError(f"'{path}' has rows of shape {list(vectors_RND.shape[1:])}.", "Encode again.")
        if not bool(torch.isfinite(vectors_RND).all()):
            raise LmlabError(f"'{path}' holds vectors that are no finite numbers.", "Encode again.")
        return vectors_RND

    def _check_part(self, number: int) -> None:
        """That it is what was written, and by whom."""
        stem = self.path / _stem(number)
        told = read_mapping(stem.with_suffix(".json"))
        digests = self._digests(stem)
        if changed := [name for name, digest in digests.items() if told.get(name) != digest]:
            what = f"'{self.path / META}'" if changed == ["meta"] else "a file of the part"
            raise LmlabError(f"'{stem}' is not what was written: {what} has changed.", "Copy it, or encode, again.")
        if not self.trust and not is_own(json.dumps(digests), told.get("mark")):
            raise UserError(
                f"The vectors in '{stem}' were not written by you on this machine (by {told.get('written_by')!r}, they"
                " say).",
                UNTRUSTED,
            )
        self._known.add(number)

    def _digests(self, stem: Path) -> dict[str, str]:
        """Of all that says what a part's vectors are, and how they are to be read."""
        files = {name: stem.with_suffix(f".{name}") for name in ("safetensors", "jsonl")}
        if missing := [path for path in files.values() if not path.is_file()]:
            raise LmlabError(f"'{missing[0]}' is missing.", "Copy the store again, or encode again.")
        own = {name: sha256_file(path) for name, path in files.items()}
        return {**own, "meta": self._digest_of_meta()}

    def _digest_of_meta(self) -> str:
        # fields at their defaults say nothing: one that a later version adds leaves stores of before as they are
        return sha256_json(self.meta.model_dump(mode="json", exclude_defaults=True))

    def _forget(self) -> None:
        vars(self).pop("_index", None)


def find_soft_prompt(place: str | Path, model: Transformer, *, trust: bool = False) -> SoftPrompt:
    """The vectors at a place: a file of `save_soft_prompt`, or a text of a store, as STORE/ID.

    Arguments:
        model: that will read them, on whose device they are put.
        trust: also what this user did not write on this machine.

    Raises:
        UserError: there is no such thing, it is of other weights, or others wrote it.
        LmlabError: it is damaged.
    """
    path, told = Path(place).expanduser(), os.path.expanduser(place)
    if _is_file(path):
        return load_soft_prompt(path, model, trust=trust)
    # an id may hold what no path keeps, such as the // of an address
    ends = [*(each.start() for each in re.finditer("/", told)), len(told)]
    folders = ((Path(told[:end] or "/"), told[end + 1 :]) for end in ends)
    folder, id = next((each for each in folders if _is_file(each[0] / META)), (None, ""))
    if folder is None:
        raise UserError(
            f"There is no soft prompt at '{place}': neither a file nor a text of a store (STORE/ID).",
            "Make one: lmlab compress text, or lmlab compress encode",
        )
    store = SummaryStore(folder, trust=trust)
    if not id:
        raise UserError(
            f"'{place}' is a store of {len(store):,} texts.", f"Name one: {folder}/{next(iter(store.ids), 'ID')}"
        )
    weight = next(model.parameters())
    store.check(known_fingerprint(model), model.config.d_model)
    found = store.get(id)
    return replace(found, vectors_BPD=found.vectors_BPD.to(weight.device))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a path, as ids of texts may be
        return False


def _not_finite(rows: Sequence[StoreRow], vectors_RND: Tensor) -> StoreRow | None:
    """The first row that holds what is no finite number."""
    bad_R = (~torch.isfinite(vectors_RND)).flatten(1).any(1) if len(rows) else torch.zeros(0)
    return rows[int(bad_R.nonzero()[0])] if bool(bad_R.any()) else None


def _stem(number: int) -> str:
    return f"part-{number:05d}"


def _brief(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if re.fullmatch(r"[0-9a-f]{64}", text) else text
