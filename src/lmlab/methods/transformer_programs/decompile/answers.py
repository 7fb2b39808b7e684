"""Sequences with a model's answers, which a program is to give.

Shapes: B sequences, T places, C answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.methods.transformer_programs.decompile.form import Form
from lmlab.models import Transformer

_ROWS = 256


@dataclass(frozen=True)
class Asked:
    """Sequences of ids, and where an answer is wanted.

    Attributes:
        ids: of each sequence.
        wanted: of each sequence, whether each place is compared.
        labels: of each sequence, the right answer at each place by its id; None where the data says none.
    """

    ids: tuple[tuple[int, ...], ...]
    wanted: tuple[tuple[bool, ...], ...]
    labels: tuple[tuple[int | None, ...], ...]

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, first: int, last: int) -> Asked:
        """Some of them."""
        return Asked(self.ids[first:last], self.wanted[first:last], self.labels[first:last])


@dataclass(frozen=True)
class Answers:
    """Sequences with answers.

    Attributes:
        tokens_BT: by their number among those that occur.
        positions_BT: where they stand.
        real_BT: which places are compared.
        wanted_BTC: the model's log-probabilities of the answers.
        given_BT: its answer by its number, -1 for one that is none of them.
    """

    tokens_BT: Tensor
    positions_BT: Tensor
    real_BT: Tensor
    wanted_BTC: Tensor
    given_BT: Tensor

    def __len__(self) -> int:
        return len(self.tokens_BT)

    def rows(self, index: Tensor) -> Answers:
        """Some of them, without places that none of them has."""
        real_BT = self.real_BT[index]
        longest = int(real_BT.any(0).nonzero().max()) + 1
        parts = (self.tokens_BT, self.positions_BT, self.real_BT, self.wanted_BTC, self.given_BT)
        tokens, positions, real, wanted, given = (each[index][:, :longest] for each in parts)
        return Answers(tokens, positions, real, wanted, given)


@dataclass(frozen=True)
class Placed:
    """Sequences as tensors.

    Attributes:
        ids_BT: padded with an id that occurs.
        positions_BT: where they stand.
        real_BT: which places are compared.
    """

    ids_BT: Tensor
    positions_BT: Tensor
    real_BT: Tensor


def placed(model: Transformer, asked: Asked, offsets: int = 0, seed: int = 0) -> Placed:
    """Sequences where the model has positions for them.

    Arguments:
        offsets: each sequence begins at a position drawn from 0 to this.

    Raises:
        UserError: one does not fit the model's positions.
    """
    length = max(len(each) for each in asked.ids)
    places = model.config.max_seq_len if model.position_embedding is not None else None
    if places is not None and length + offsets > places:
        raise UserError(
            f"A sequence of {length} places that begins at up to {offsets} does not fit the {places} positions of the"
            " model.",
            "Give shorter sequences, or a lower --offsets.",
        )
    ids_BT = torch.full((len(asked), length), asked.ids[0][0])
    real_BT = torch.zeros(len(asked), length, dtype=torch.bool)
    for row, (ids, wanted) in enumerate(zip(asked.ids, asked.wanted, strict=True)):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        real_BT[row, : len(ids)] = torch.tensor(wanted)
    begin_B = torch.randint(0, offsets + 1, (len(asked), 1), generator=torch.Generator().manual_seed(seed))
    return Placed(ids_BT, torch.arange(length) + begin_B, real_BT)


@torch.no_grad()
def answered(model: Transformer, where: Placed) -> list[int]:
    """The ids that the model answers with where it is compared."""
    found: set[int] = set()
    for ids, positions, real in _parts(where):
        logits = model(ids, position_ids_BT=positions).logits_BTV
        assert logits is not None
        found |= set(logits.argmax(-1)[real].tolist())
    return sorted(found)


@torch.no_grad()
def ask(model: Transformer, where: Placed, token_ids: Sequence[int], label_ids: Sequence[int]) -> Answers:
    """The model's answers, among some ids."""
    given, log_probs = [], []
    for ids, positions, _ in _parts(where):
        logits = model(ids, position_ids_BT=positions).logits_BTV
        assert logits is not None
        given.append(logits.argmax(-1))
        log_probs.append(logits[..., list(label_ids)].float().log_softmax(-1))
    tokens_BT = _numbers(model, token_ids, 0)[where.ids_BT]
    given_BT = _numbers(model, label_ids, -1)[torch.cat(given)]
    return Answers(tokens_BT, where.positions_BT, where.real_BT, torch.cat(log_probs), given_BT)


def _parts(where: Placed) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    tensors = (where.ids_BT, where.positions_BT, where.real_BT)
    return zip(*(each.split(_ROWS) for each in tensors), strict=True)


def _numbers(model: Transformer, ids: Sequence[int], other: int) -> Tensor:
    """Of each id of the model, its number among these."""
    found = torch.full((model.config.padded_vocab_size,), other)
    found[list(ids)] = torch.arange(len(ids))
    return found


@torch.no_grad()
def form_answers(form: Form, answers: Answers) -> Tensor:
    """The numbers of a program's answers, [B, T]."""
    found = [
        form.run(tokens, positions).argmax(-1)
        for tokens, positions in zip(answers.tokens_BT.split(_ROWS), answers.positions_BT.split(_ROWS), strict=True)
    ]
    return torch.cat(found)


@torch.no_grad()
def match(form: Form, answers: Answers) -> tuple[float, float]:
    """The share of places, and of whole sequences, at which a program answers as the model does."""
    real_BT = answers.real_BT
    equal_BT = (form_answers(form, answers) == answers.given_BT) & real_BT
    return int(equal_BT.sum()) / max(1, int(real_BT.sum())), float((equal_BT == real_BT).all(1).float().mean())
