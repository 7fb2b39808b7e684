"""Rows for learning from preferences: whole examples, one a row, padded to one length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.data.chat.conversations import Example, KTOExample, PreferencePair
from lmlab.data.packing import IGNORE
from lmlab.errors import UserError

Columns = dict[str, NDArray[Any]]


def example_row(example: Example, seq_len: int, pad_id: int = 0) -> Columns:
    """One example as int64 arrays [seq_len]: `input_ids`, `labels` (the next token; -100 where it is not learned) and
    `document_ids`, which are -1 for the padding at the end.

    Raises:
        UserError: the example has more than seq_len + 1 tokens.
    """
    length = len(example.ids) - 1
    if length > seq_len:
        raise UserError(
            f"An example of {length + 1} tokens does not fit rows of seq_len {seq_len}.",
            f"Set max_len to {seq_len + 1} at most.",
        )
    ids, mask = np.asarray(example.ids, np.int64), np.asarray(example.mask, bool)
    padding = (0, seq_len - length)
    return {
        "input_ids": np.pad(ids[:-1], padding, constant_values=pad_id),
        "labels": np.pad(np.where(mask[1:], ids[1:], IGNORE), padding, constant_values=IGNORE),
        "document_ids": np.pad(np.zeros(length, np.int64), padding, constant_values=-1),
    }


class PreferenceRows:
    """Pairs by number. A row has the arrays of `example_row` for both answers, named `chosen_...` and `rejected_...`.

    Arguments:
        pairs: the pairs.
        seq_len: length of the rows.
        pad_id: the token that fills them.
        reference: further fields, one number a pair: `reference_chosen` and `reference_rejected` of
            `reference_log_probs`.

    Raises:
        UserError: no pairs, or one is too long.
    """

    sides = ("chosen_", "rejected_")
    reference_names = ("reference_chosen", "reference_rejected")

    def __init__(
        self, pairs: Sequence[PreferencePair], seq_len: int, pad_id: int = 0, reference: Columns | None = None
    ) -> None:
        _check(
            len(pairs),
            max((len(each.ids) for pair in pairs for each in (pair.chosen, pair.rejected)), default=0),
            seq_len,
            reference,
        )
        self.pairs, self.seq_len, self.pad_id, self.reference = pairs, seq_len, pad_id, reference or {}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Columns:
        pair = self.pairs[index]
        examples = zip(self.sides, (pair.chosen, pair.rejected), strict=True)
        row = {
            side + name: array
            for side, each in examples
            for name, array in example_row(each, self.seq_len, self.pad_id).items()
        }
        return row | {name: values[index] for name, values in self.reference.items()}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all ids and masks, in order."""
        return _hash([each.ids, each.mask] for pair in self.pairs for each in (pair.chosen, pair.rejected))


class KTORows:
    """Labeled answers by number. A row has the arrays of `example_row`, those of a mismatched pair as `kl_...`, and
    `desirable` (0 or 1).

    The mismatched pair is the prompt with the answer of the next example that has another prompt; an answer that does
    not fit is cut.

    Arguments:
        examples, seq_len, pad_id: as for `PreferenceRows`.
        reference: further fields, one number an example: `reference` and `reference_kl` of `reference_log_probs`.

    Raises:
        UserError: no examples, one is too long, or all have one prompt.
    """

    sides = ("", "kl_")
    reference_names = ("reference", "reference_kl")

    def __init__(
        self, examples: Sequence[KTOExample], seq_len: int, pad_id: int = 0, reference: Columns | None = None
    ) -> None:
        _check(len(examples), max((len(each.example.ids) for each in examples), default=0), seq_len, reference)
        self.examples, self.seq_len, self.pad_id, self.reference = examples, seq_len, pad_id, reference or {}
        self._others = self._find_others()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Columns:
        this, other = self.examples[index], self.examples[self._others[index]]
        ids = this.example.ids[: this.prompt_length] + other.example.ids[other.prompt_length :]
        mask = [0] * this.prompt_length + other.example.mask[other.prompt_length :]
        mismatched = Example(ids[: self.seq_len + 1], mask[: self.seq_len + 1])
        examples = zip(self.sides, (this.example, mismatched), strict=True)
        row = {
            side + name: array
            for side, each in examples
            for name, array in example_row(each, self.seq_len, self.pad_id).items()
        }
        row["desirable"] = np.asarray(this.desirable, np.int64)
        return row | {name: values[index] for name, values in self.reference.items()}

    def _find_others(self) -> list[int]:
        """For each example the next one, in a circle, whose prompt is another."""
        prompts = [tuple(each.example.ids[: each.prompt_length]) for each in self.examples]
        count, following = len(prompts), -1
        others = [-1] * count
        for position in reversed(range(2 * count)):  # twice round, so that the last examples see the first
            index, after = position % count, (position + 1) % count
            if prompts[index] != prompts[after]:
                following = after
            others[index] = following
        if following < 0:
            raise UserError(
                "All examples have one prompt; KTO needs several to estimate the divergence.",
                "Add examples with other prompts.",
            )
        return others

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all ids, masks and prompt lengths, in order, and of the length at which mismatched pairs
        are cut.
        """
        return _hash(
            [each.example.ids, each.example.mask, [each.prompt_length, self.seq_len]] for each in self.examples
        )


def _check(count: int, longest: int, seq_len: int, reference: Columns | None) -> None:
    if count == 0:
        raise UserError("There is no example to learn from.", "See the rejects for the reasons.")
    if longest > seq_len + 1:
        raise UserError(
            f"The longest example has {longest} tokens, rows of seq_len {seq_len} hold {seq_len + 1}.",
            f"Set max_len to {seq_len + 1}.",
        )
    for name, values in (reference or {}).items():
        if len(values) != count:
            raise UserError(
                f"The field {name} has {len(values)} values for {count} examples.", "Compute it for these examples."
            )


def _hash(values: Any) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value).encode())
    return digest.hexdigest()
