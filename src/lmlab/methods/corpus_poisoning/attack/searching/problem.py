"""One passage to optimize: which of its tokens are free, what they may be, how it scores, and what was spent.

The unit of budget is one passage forward; a gradient counts three. All parameters are frozen, and gradients are taken
for the output of the word-embedding lookup alone.

Shapes: B passages, L tokens of the passage, W tokens with what the encoder puts around, D width, V allowed ids, H
width of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmlab.errors import LmlabError, UserError
from lmlab.methods.corpus_poisoning.attack.searching.objective import Objective
from lmlab.methods.corpus_poisoning.attack.searching.together import Network
from lmlab.methods.corpus_poisoning.attack.vocabulary import places_of
from lmlab.retrieval import AnyEncoder
from lmlab.retrieval.config import Precision

GRADIENT_COST = 3  # forward passes: a backward pass takes about two, after one forward

Penalty = Callable[[Sequence[NDArray[np.int64]], NDArray[np.float32], NDArray[np.float64]], NDArray[np.float64]]
"""Of B passages' inner ids, their vectors [B, H] and their objective [B] to what is subtracted from it, [B]."""


class NotFiniteError(LmlabError):
    """A score or gradient is not finite."""


@dataclass
class Budget:
    """Passage forwards that may be spent, and that were.

    Attributes:
        told: is called with every number of them.
    """

    limit: int
    spent: int = 0
    told: Callable[[int], None] | None = None

    def spend(self, forwards: int) -> None:
        """So many were."""
        self.spent += forwards
        if self.told is not None:
            self.told(forwards)

    @property
    def left(self) -> int:
        """What remains."""
        return max(0, self.limit - self.spent)


@dataclass
class Problem:
    """A passage of fixed length.

    Attributes:
        allowed_V: ids that free positions may take.
        free_L: which positions are free; the others hold a payload.
        precision: of the ranking of candidates; what is accepted is scored in fp32.
        penalty: what an adaptive attack wants small: what a defense would see.
        network: what is asked for vectors and gradients, where several searches share one.
        wrapped: put what the encoder puts around real text around the passage; the reference does not.
    """

    encoder: AnyEncoder
    objective: Objective
    allowed_V: NDArray[np.int64]
    free_L: NDArray[np.bool_]
    budget: Budget
    precision: Precision = "fp32"
    penalty: Penalty | None = None
    wrapped: bool = True
    network: Network | None = None
    trace: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_length(self.encoder, len(self.free_L))
        self._network = self.network or Network(self.encoder)

    @property
    def length(self) -> int:
        """Tokens of the passage."""
        return len(self.free_L)

    @property
    def free_positions(self) -> NDArray[np.int64]:
        """The numbers of free positions."""
        return np.flatnonzero(self.free_L)

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        probe = int(self.allowed_V[0])
        whole = self.encoder.wrap([probe]) if self.wrapped else [probe]
        place = len(whole) - 1 - whole[::-1].index(probe)
        return whole[:place], whole[place + 1 :]

    @cached_property
    def allowed_table_VD(self) -> Tensor:
        """Rows of the table that may be chosen, stored together so that one product scores all of them."""
        return self.encoder.embedding_matrix_VD[torch.from_numpy(self.allowed_V)].detach().float().contiguous()

    @cached_property
    def _places(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        return places_of(self.encoder.tokenizer, self.allowed_V)

    def wrap(self, ids_BL: NDArray[np.int64]) -> Tensor:
        """Passages as the encoder reads them, [B, W]."""
        before, after = self._around
        rows = np.concatenate(
            [np.tile(before, (len(ids_BL), 1)), ids_BL, np.tile(after, (len(ids_BL), 1))], axis=1
        ).astype(np.int64)
        return torch.from_numpy(rows).to(self.encoder.device)

    def scores(self, ids_BL: NDArray[np.int64], precision: Precision | None = None) -> NDArray[np.float64]:
        """The objective of passages, [B], in one batch of one length: no padding, no mask."""
        self.budget.spend(len(ids_BL))
        vectors = self._network.vectors(self.wrap(ids_BL), precision or self.precision)
        with torch.inference_mode():
            values = self.objective(vectors).double()
        found: NDArray[np.float64] = values.cpu().numpy()
        if not np.isfinite(found).all():
            raise NotFiniteError("A score is not finite.")
        return found if self.penalty is None else found - self.penalty(list(ids_BL), vectors.cpu().numpy(), found)

    def vectors(self, ids_BL: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of passages in fp32, [B, H]; outside of the budget."""
        found: NDArray[np.float32] = Network(self.encoder).vectors(self.wrap(ids_BL), "fp32").cpu().numpy()
        return found

    def score(self, ids_L: NDArray[np.int64]) -> float:
        """The objective of one passage in fp32: what is accepted and reported."""
        return float(self.scores(ids_L[None], "fp32")[0])

    def gradient(self, ids_BL: NDArray[np.int64]) -> NDArray[np.float32]:
        """The gradient of the objective for the embeddings of a passage's tokens, averaged over the copies given,
        [L, D].

        Raises:
            UserError: it is zero: what is differentiated is not the encoder of documents.
        """
        self.budget.spend(GRADIENT_COST * len(ids_BL))
        (found,) = self._network.gradients([self.wrap(ids_BL)], [self.objective])
        if found is None:
            raise _no_gradient()
        start = len(self._around[0])
        gradient = found.sum(0)[start : start + self.length].float()
        if not bool(torch.isfinite(gradient).all()):
            raise NotFiniteError("A gradient is not finite.")
        if not bool(gradient.any()):
            raise _no_gradient()
        values: NDArray[np.float32] = gradient.cpu().numpy()
        return values

    def first_order(self, gradient_LD: NDArray[np.float32], ids_L: NDArray[np.int64]) -> NDArray[np.float32]:
        """The first-order gain of each replacement, g_i . (E[w] - E[t_i]), [L, V]; -inf where nothing may change.

        The second term makes gains of different positions comparable (the reference, which draws the position, leaves
        it out).
        """
        gradient = torch.from_numpy(gradient_LD).to(self.allowed_table_VD)
        here = self.encoder.embedding_matrix_VD[torch.from_numpy(ids_L)].detach().float().to(gradient)
        gains = gradient @ self.allowed_table_VD.T - (gradient * here).sum(1, keepdim=True)
        found: NDArray[np.float32] = gains.cpu().numpy()
        found[~self.free_L] = -np.inf
        first_V, later_V = self._places
        found[1:, ~later_V] = -np.inf
        found[0, ~first_V] = -np.inf
        places = np.minimum(np.searchsorted(self.allowed_V, ids_L), len(self.allowed_V) - 1)
        same = np.flatnonzero(self.allowed_V[places] == ids_L)
        found[same, places[same]] = -np.inf
        return found

    def note(self, value: float) -> None:
        """Remember what was reached for what was spent."""
        self.trace.append((self.budget.spent, value))


def check_length(encoder: AnyEncoder, length: int) -> None:
    """Refuse a passage that the encoder would cut.

    Raises:
        UserError: with the numbers.
    """
    around = len(encoder.wrap([]))
    if length + around > encoder.max_length:
        raise UserError(
            f"A passage of {length} tokens and {around} around it has {length + around}; the encoder reads"
            f" {encoder.max_length}.",
            "Shorten the passage or the payload (--length).",
        )


def _no_gradient() -> UserError:
    return UserError(
        "The gradient is zero at the passage encoder: check that the document encoder, not the query encoder, is"
        " differentiated."
    )


def concatenate(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Ids one after another."""
    return np.concatenate([np.asarray(part, np.int64) for part in parts])
