"""Fits the classifier again once all choices are made: over the arg max it is a logistic regression, which has one best
answer and takes seconds, where training under noise stops short of it.

Shapes: R distinct rows of features, V categorical and U numerical variables, D values, C labels.
"""

from __future__ import annotations

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
    cat_RV, num_RU, labels_R, count_R = _rows(one_seed(model, place), split)
    masked = torch.tensor([label in model.spec.masked_labels for label in model.spec.labels])
    width, variables = model.spec.d_var, cat_RV.shape[1]
    start = model.unembed[place].detach().cpu().double()
    weights = start.clone().requires_grad_()
    offset = torch.arange(variables) * width
    optimizer = torch.optim.LBFGS([weights], max_iter=iterations, line_search_fn="strong_wolfe")
    total = count_R.sum()

    def loss() -> Tensor:
        optimizer.zero_grad()
        table = torch.nn.functional.embedding_bag(cat_RV + offset, weights, mode="sum")
        logits = table + num_RU @ weights[variables * width :]
        losses = torch.nn.functional.cross_entropy(logits.masked_fill(masked, -1e30), labels_R, reduction="none")
        value = (losses * count_R).sum() / total + _PENALTY * ((weights - start) ** 2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    if bool(weights.isfinite().all()):
        with torch.no_grad():
            model.unembed[place] = weights.to(model.unembed)


def _rows(model: ProgramTransformer, split: Split) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The distinct rows of features and label under the arg max, and how often each occurs."""
    found = []
    for tokens, labels in zip(split.tokens.split(_ROWS), split.labels.split(_ROWS), strict=True):
        with torch.no_grad():
            cat, num = model.streams(tokens, DISCRETE)
        keep = labels >= 0
        ids = cat[0].argmax(-1).permute(1, 2, 0)[keep]
        numbers = num[0, ..., 0].permute(1, 2, 0)[keep]
        found.append(torch.cat([ids.double(), numbers.double(), labels[keep][:, None].double()], -1).cpu())
    rows, counts = torch.cat(found).unique(dim=0, return_counts=True)
    variables = len(model.spec.cat_names(model.spec.num_layers))
    return rows[:, :variables].long(), rows[:, variables:-1], rows[:, -1].long(), counts.double()
