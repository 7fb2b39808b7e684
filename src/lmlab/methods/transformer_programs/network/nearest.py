"""The chance that each place is the nearest match of a query, where its score is the chance that it matches.

Places are asked in the order in which a program prefers them: place k of that order is taken with its score s_k times
the product of 1 - s_m over all m before it, and the first place of the sequence with what is left. That is the
geometric attention of Csordas et al. 2022, "The neural data router". Scores that are 0 or 1 give what the program
takes, at any temperature and without noise, and the gradient is exact: the chance of having come so far, times what
this place gives over what would be taken in its stead. So it is bounded, which that of log(s + 1e-20) is not.

Shapes: S seeds, H heads, B sequences, N places; R = S * H * B rows.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


@cache
def _orders(places: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where (query, rank) stands in flat (query, key), and where (query, key) stands in flat (query, rank).

    Of two places at the same distance the left one goes first, and the own place last.
    """
    ranked = [
        sorted(range(places), key=lambda key: (key == query, abs(key - query), key > query)) for query in range(places)
    ]
    to_rank = (torch.tensor(ranked) + places * torch.arange(places)[:, None]).flatten()
    return to_rank.to(device), to_rank.argsort().to(device)


class _Nearest(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        places = scores.shape[-1]
        to_rank, to_key = _orders(places, scores.device)
        ranked = (
            scores.reshape(-1, places * places).index_select(1, to_rank).view(-1, places, places)
        )  # (R, query, rank)
        reached, left = torch.empty_like(ranked), torch.ones_like(ranked[..., 0])
        for rank, score in enumerate(ranked.unbind(-1)):
            reached[..., rank] = left
            left = torch.addcmul(left, left, score, value=-1)
        weights = (reached * ranked).view(-1, places * places).index_select(1, to_key).view(scores.shape)
        weights[..., 0] += left.view(scores.shape[:-1])
        ctx.save_for_backward(ranked, reached)
        return weights

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ranked, reached = ctx.saved_tensors
        places = gradient.shape[-1]
        to_rank, to_key = _orders(places, gradient.device)
        given = gradient.reshape(-1, places * places).index_select(1, to_rank).view(-1, places, places)
        instead = gradient[..., 0].reshape(-1, places)  # what is got where none of the later ranks is taken
        found = torch.empty_like(ranked)
        for rank in range(places - 1, -1, -1):
            more = given[..., rank] - instead
            found[..., rank] = more
            instead = torch.addcmul(instead, ranked[..., rank], more)
        found *= reached
        return found.view(-1, places * places).index_select(1, to_key).view(gradient.shape)


def nearest(scores: Tensor) -> Tensor:
    """Weights (..., N, N) of the places (last axis) that each query takes.

    Arguments:
        scores: (..., N, N), from 0 to 1; 0 of places that a query does not see.
    """
    weights: Tensor = _Nearest.apply(scores)
    return weights
