"""Fits the classifier again once all choices are made: over the arg max it is a logistic regression, which has one best
answer and takes seconds, where training under noise stops short of it.

Shapes: R distinct rows of features, V categorical and U numerical variables, D values, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmlab.methods.transformer_programs.network.convert import DISCRETE, one_seed
from lmlab.methods.transformer_programs.network.model import ProgramTransformer
from lmlab.methods.transformer_programs.tasks.dataset import Split

_ITERATIONS = 100  # of L-BFGS, from where training left off
_PENALTY = 1e-6  # on the way from there: what examples leave open stays as it was trained
_ROWS = 512  # sequences in a pass: more take memory, fewer start more passes


def polish(model: ProgramTransformer, place: int, split: Split, iterations: int = _ITERATIONS) -> None:
    """Fit the classifier of one seed to a split, from where training left it. Networks that pool keep theirs."""
    if model.spec.pool_outputs:
        return
    scored = _scored(model)
    cat_RV, num_RU, labels_R, count_R = _rows(one_seed(model, place), split, scored)
    masked = torch.tensor([label in model.spec.masked_labels for label in model.spec.labels])
    width, first_number = model.spec.d_var, len(_categories(model)) * model.spec.d_var
    # numbers such as counts are larger than the ones of categories; equal steps are as much for both
    size = torch.ones(model.unembed.shape[1], 1, dtype=torch.double)
    size[first_number:, 0] = num_RU.square().mean(0).sqrt().clamp(min=1.0)
    start = model.unembed[place].detach().cpu().double() * size
    weights = start.clone().requires_grad_()
    offset = torch.tensor(scored) * width
    optimizer = torch.optim.LBFGS([weights], max_iter=iterations, line_search_fn="strong_wolfe")
    total = count_R.sum()

    def loss() -> Tensor:
        optimizer.zero_grad()
        rows = weights / size
        table = torch.nn.functional.embedding_bag(cat_RV + offset, rows, mode="sum")
        logits = table + num_RU @ rows[first_number:]
        losses = torch.nn.functional.cross_entropy(logits.masked_fill(masked, -1e30), labels_R, reduction="none")
        value = (losses * count_R).sum() / total + _PENALTY * ((weights - start) ** 2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    if bool(weights.isfinite().all()):
        with torch.no_grad():
            model.unembed[place] = (weights / size).to(model.unembed)


def _categories(model: ProgramTransformer) -> Sequence[str]:
    return model.spec.cat_names(model.spec.num_layers)


def _scored(model: ProgramTransformer) -> list[int]:
    """The categories that the classifier reads: all, but for positions where they are forbidden."""
    forbidden = {"positions"} if model.spec.forbid_positions else set()
    return [number for number, name in enumerate(_categories(model)) if name not in forbidden]


def _rows(model: ProgramTransformer, split: Split, scored: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The distinct rows of features and label under the arg max, and how often each occurs; of categories the scored
    ones.
    """
    found = []
    for tokens, labels in zip(split.tokens.split(_ROWS), split.labels.split(_ROWS), strict=True):
        with torch.no_grad():
            cat, num = model.streams(tokens, DISCRETE)
        keep = labels >= 0
        ids = cat[0].argmax(-1).permute(1, 2, 0)[keep][:, list(scored)]
        numbers = num[0, ..., 0].permute(1, 2, 0)[keep]
        found.append(torch.cat([ids.double(), numbers.double(), labels[keep][:, None].double()], -1).cpu())
    rows, counts = torch.cat(found).unique(dim=0, return_counts=True)
    variables = len(scored)
    return rows[:, :variables].long(), rows[:, variables:-1], rows[:, -1].long(), counts.double()
