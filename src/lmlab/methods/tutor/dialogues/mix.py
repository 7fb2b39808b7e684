"""Sets of dialogues as tokenized examples: TutorChat alone, or mixed with questions of mathematics (MathMix)."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.data import Reject, Rejects, TokenizedItem, Tokenizer, read_records, write_shards
from lmlab.errors import UserError
from lmlab.files import write_json
from lmlab.methods.tutor.config import FormatConfig, MixConfig
from lmlab.methods.tutor.dialogues.encode import FormattedDialogue, encode_segments, format_record
from lmlab.methods.tutor.dialogues.record import EmptyTurn, UnfitRecord, kind_of
from lmlab.methods.tutor.dialogues.segments import math_segments
from lmlab.progress import progress
from lmlab.runs import Results

STEM = ("bio", "chem", "eng", "geo", "math", "med", "phys", "stats")
"""The folders of TutorChat that are science."""
MATH = "math"
"""The domain of sequences of MetaMath."""
_QUESTION, _ANSWER = ("query", "question", "problem"), ("response", "answer", "solution")


class MixAccount(Results):
    """What became of the records.

    Attributes:
        records: that were read.
        sequences: that were written, by kind of dialogue.
        left_out: by the reason (the name of the error), or `other_folder`.
        tokens, learned_tokens: of all sequences.
        cut: sequences that lost turns at their end.
    """

    records: int
    sequences: dict[str, int]
    left_out: dict[str, int]
    tokens: int
    learned_tokens: int
    cut: int


def folder_domain(record: dict[str, Any]) -> str:
    """The domain that a record's `textbook_folder` says: what stands below `textbooks/`, wherever that lies; without
    a folder of that name the first one that is a domain of science, else the second of three or more.
    """
    parts = [each for each in str(record.get("textbook_folder") or "").split("/") if each not in ("", ".")]
    if "textbooks" in parts[:-1]:
        return parts[parts.index("textbooks") + 1]
    known = next((each for each in parts[:-1] if each in STEM), None)
    return known or (parts[1] if len(parts) > 2 else parts[0] if parts else "text")


def write_dialogues(
    dialogues: Path | str | None, tokenizer: Tokenizer, config: FormatConfig | MixConfig, directory: str | Path
) -> MixAccount:
    """Format the dialogues of a file or folder, mix them with mathematics if there is any, and write shards that the
    stage `train` reads, `mix.json` and `rejects.jsonl`.

    Raises:
        UserError: nothing can be learned from, or there are more unfit records than `max_reject_fraction`.
    """
    directory = Path(directory)
    maker = _Maker(tokenizer, config)
    rejects = Rejects(directory / "rejects.jsonl", config.max_reject_fraction)
    with rejects:
        items = [] if dialogues is None else [*maker.dialogues(dialogues, rejects)]
        rejects.check(len(items), "Mend the records (rejects.jsonl lists them), or raise max_reject_fraction.")
    if isinstance(config, MixConfig):
        if config.metamath is not None:
            items += maker.math(config.metamath, config.join)
        items = [items[n] for n in np.random.default_rng(config.shuffle_seed).permutation(len(items))]
    if not items:
        raise UserError(
            "The records hold nothing to learn from.", "rejects.jsonl says why; `folders` may leave all out."
        )
    write_shards(iter(items), tokenizer, directory, kind="examples")
    account = MixAccount(
        records=maker.read,
        sequences=dict(sorted(maker.kinds.items())),
        left_out=dict(sorted(maker.left_out.items())),
        tokens=sum(len(item.ids) for item in items),
        learned_tokens=sum(sum(item.mask or ()) for item in items),
        cut=maker.cut,
    )
    write_json(directory / "mix.json", account.to_json())
    return account


class _Maker:
    """Makes sequences, and counts what becomes of records."""

    def __init__(self, tokenizer: Tokenizer, config: FormatConfig | MixConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        self.read = self.cut = 0
        self.kinds: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()

    def dialogues(self, place: Path | str, rejects: Rejects) -> Iterator[TokenizedItem]:
        """The sequences of records of dialogues."""
        config = self.config
        folders = STEM if config.folders == ("stem",) else config.folders
        with progress("format", None, "records") as advance:
            for found in read_records(place):
                advance()
                self.read += 1
                if isinstance(found, Reject):
                    self._reject(rejects, found, "unreadable")
                    continue
                where, record = found
                domain = folder_domain(record) if isinstance(record, dict) else "text"
                if folders and domain not in folders:
                    self.left_out["other_folder"] += 1
                    continue
                try:
                    made = format_record(record, self.tokenizer, config.max_len, config.seed, config.format)
                    self.kinds[kind_of(record)] += 1
                except UnfitRecord as error:
                    self._reject(rejects, Reject(where, f"{error.kind}: {error}"), error.kind)
                    continue
                except AttributeError:
                    self._reject(rejects, Reject(where, "UnfitRecord: not an object"), "UnfitRecord")
                    continue
                yield self._item(made, domain)

    def math(self, place: Path | str, join: int) -> Iterator[TokenizedItem]:
        """Sequences of so many questions with their answers; the last one may have fewer."""
        pairs = [_pair(where, record) for where, record in _whole(read_records(place))]
        order = np.random.default_rng(self.config.shuffle_seed if isinstance(self.config, MixConfig) else 42)
        shuffled = [pairs[n] for n in order.permutation(len(pairs))]
        self.read += len(shuffled)
        for number, start in enumerate(range(0, len(shuffled), join)):
            segments = math_segments(shuffled[start : start + join], self.config.seed, number)
            try:
                made = encode_segments(segments, self.tokenizer, self.config.max_len)
            except UnfitRecord as error:
                self.left_out[error.kind] += 1
                continue
            if not any(made.mask[1:]):  # the begin token alone
                self.left_out["NothingLearned"] += 1
                continue
            self.kinds["metamath"] += 1
            yield self._item(made, MATH)

    def _item(self, made: FormattedDialogue, domain: str) -> TokenizedItem:
        self.cut += bool(made.turns_cut)
        # arrays of machine numbers: all of TutorChat is in memory until it is shuffled
        return TokenizedItem(array("I", made.ids), domain, len(made.text.encode()), array("B", made.mask))

    def _reject(self, rejects: Rejects, reject: Reject, kind: str) -> None:
        self.left_out[kind] += 1
        rejects.add(reject)


def _whole(records: Iterator[tuple[str, Any] | Reject]) -> Iterator[tuple[str, Any]]:
    for each in records:
        if isinstance(each, Reject):
            raise UserError(f"{each.where}: {each.reason}.", "Mend that record of mathematics.")
        yield each


def _pair(where: str, record: Any) -> tuple[str, str]:
    """A question and its answer."""
    found = [_text(record, names) for names in (_QUESTION, _ANSWER)]
    if found[0] is None or found[1] is None:
        raise UserError(
            f"{where}: no question with its answer.", f"It needs {_names(_QUESTION)}, and {_names(_ANSWER)}."
        )
    for text in found:
        if not str(text).strip():
            raise UserError(f"{where}: {EmptyTurn.kind}: a blank question or answer.")
    return str(found[0]), str(found[1])


def _text(record: Any, names: Sequence[str]) -> str | None:
    if not isinstance(record, dict):
        return None
    return next((record[name] for name in names if isinstance(record.get(name), str)), None)


def _names(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def summary(account: MixAccount) -> str:
    """What was written and what was left out, in a sentence or two."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in account.sequences.items())
    told = f"{sum(account.sequences.values()):,} sequences ({kinds}), {account.tokens:,} tokens, of which"
    told += f" {account.learned_tokens / account.tokens:.0%} are learned."
    if account.left_out:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in account.left_out.items())
        told += f" Left out: {reasons} (rejects.jsonl)."
    return told + (f" {account.cut:,} sequences lost turns at their end." if account.cut else "")
