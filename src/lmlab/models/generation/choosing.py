"""The next token of each row, chosen from logits by the row's own settings.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lmlab.errors import LmlabError
from lmlab.models.generation.continuation import Continuation, Decode, TopTokens
from lmlab.models.generation.sampling import draw, keep_likely, penalize

_COLDEST = 1e-30  # below it logits over the temperature exceed fp32, and the likeliest token is drawn for sure


def choose_tokens(rows: Sequence[Continuation], logits_RV: Tensor, decode: Decode | None, raises: bool = True) -> None:
    """Choose a token for every row that is not done.

    Arguments:
        raises: raise what fails a row; else it is kept as the row's `failure`.

    Raises:
        LmlabError: the logits of such a row are not numbers.
    """
    chosen_R = _sample(rows, logits_RV)
    log_z_R = logits_RV.logsumexp(-1)
    log_probs_R = logits_RV.gather(1, chosen_R[:, None])[:, 0] - log_z_R
    # one transfer from the device for both: fp32 holds every id below 16 million exactly
    chosen, log_probs = torch.stack((chosen_R.float(), log_probs_R)).tolist()
    tops = (
        likeliest(logits_RV - log_z_R[:, None], wanted)
        if any(wanted := [row.config.top_log_probs for row in rows])
        else [[] for _ in rows]
    )
    for row, token, log_prob, top in zip(rows, map(int, chosen), log_probs, tops, strict=True):
        if row.config.max_new_tokens == 0:
            row.finish_reason = "length"
        elif not row.done:
            if math.isnan(log_prob):
                row.failure = not_numbers()
            else:
                row.append(token, log_prob, top, decode)
    if raises and (failed := next((row.failure for row in rows if row.failure is not None), None)):
        raise failed


def not_numbers() -> LmlabError:
    """What is said where logits are none."""
    return LmlabError(
        "The model's logits are not numbers (NaN).",
        "Its weights may be damaged, or too large for this precision: try fp32.",
    )


def _sample(rows: Sequence[Continuation], logits_RV: Tensor) -> Tensor:
    """One id a row, [R]. Rows with the same settings are drawn together."""
    if any(row.config.logit_bias or row.config.repetition_penalty != 1 or row.guide is not None for row in rows):
        logits_RV = logits_RV.clone()
        for place, row in enumerate(rows):
            for token, bias in row.config.logit_bias:
                logits_RV[place, token] += bias
            if row.config.repetition_penalty != 1:
                held = torch.tensor([*row.prompt, *row.ids], device=logits_RV.device)
                penalize(logits_RV[place], held, row.config.repetition_penalty)
            if row.guide is not None and not row.done:
                logits_RV[place].masked_fill_(~row.guide.allowed().to(logits_RV.device), float("-inf"))
    groups: dict[tuple[float, int | None, float | None, float | None], list[int]] = {}
    for place, row in enumerate(rows):
        if row.config.temperature >= _COLDEST and not row.done:
            config = row.config
            groups.setdefault((config.temperature, config.top_k, config.top_p, config.min_p), []).append(place)
    chosen_R = logits_RV.argmax(-1)
    for (temperature, top_k, top_p, min_p), places in groups.items():
        own = logits_RV if len(places) == len(rows) else logits_RV[places]
        uniforms = torch.tensor([rows[place].uniform() for place in places], dtype=torch.float64, device=own.device)
        chosen_R[places] = draw(keep_likely(own / temperature, top_k, top_p, min_p), uniforms)
    return chosen_R


def likeliest(log_probs_RV: Tensor, wanted: Sequence[int]) -> list[TopTokens]:
    """The likeliest ids of each row, as many as it wants, with their log-probabilities."""
    most = min(max(wanted, default=0), log_probs_RV.shape[1])
    found = log_probs_RV.topk(most, dim=-1)
    return [
        list(zip(ids[:k], values[:k], strict=True))
        for k, ids, values in zip(wanted, found.indices.tolist(), found.values.tolist(), strict=True)
    ]
