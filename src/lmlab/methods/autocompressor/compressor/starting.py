"""What summary tokens begin as.

Shapes: N summary tokens, D model width.
"""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.methods.autocompressor.config import SummaryInit
from lmlab.models import Transformer, segment_forward
from lmlab.models.generation.decoding import evaluating

NOISE = 0.02
"""Standard deviation of what is added, so that tokens without positions differ."""
_MEASURED = 256  # tokens by which lengths of states are told


def first_summary_tokens(
    model: Transformer, count: int, init: SummaryInit, noise: float, eos_id: int | None, seed: int
) -> Tensor:
    """A table of summary tokens, [N, D].

    In the reference the end mark's embedding is set before the weights are loaded, and is lost: here it is taken from
    the weights.

    Arguments:
        init: the end mark's embedding (eos) or the mean of all, with noise; noise alone; or tokens that are drawn.

    Raises:
        UserError: the end mark is not known or beyond the vocabulary, the noise is no finite number, or there is no
            such beginning.
    """
    if init not in get_args(SummaryInit):
        raise UserError(f"Summary tokens cannot begin as '{init}'.", f"Known: {', '.join(get_args(SummaryInit))}.")
    if not math.isfinite(noise) or noise < 0:
        raise UserError(f"The noise of summary tokens is a finite number of at least 0, not {noise:g}.")
    table = model.embedding.weight[: model.config.vocab_size].detach()
    generator = torch.Generator().manual_seed(seed)
    drawn_ND = torch.randn(count, table.shape[1], generator=generator, dtype=torch.float64).to(table.device)
    if init == "eos" and eos_id is not None and not 0 <= eos_id < len(table):
        raise UserError(f"The end mark {eos_id} is beyond the model's vocabulary of {len(table)}.")
    match init:
        case "eos" if eos_id is None:
            raise UserError(
                "The model does not say which token ends a text, from whose embedding summary tokens begin.",
                "Give eos_id, or another init: noise, mean or vocab.",
            )
        case "eos":
            return table[eos_id].double() + noise * drawn_ND
        case "mean":
            return table.double().mean(0) + noise * drawn_ND
        case "vocab":
            return table[torch.randint(0, len(table), (count,), generator=generator).to(table.device)].double()
        case _:
            return (noise or NOISE) * drawn_ND


def scale_to_embeddings(model: Transformer) -> float:
    """By what a model's final states are multiplied to be as long as its embeddings, by the mean over tokens that are
    spread over its vocabulary, read as one text. Three digits of it: further ones differ from machine to machine, and
    a training that goes on elsewhere shall have the same.

    Raises:
        UserError: states or embeddings are zero or not finite.
    """
    vocabulary = model.config.vocab_size
    count = min(_MEASURED, vocabulary, model.config.max_seq_len)
    ids_1T = torch.arange(count, device=model.embedding.weight.device)[None] * vocabulary // count
    with evaluating(model):
        embeds_1TD = model.embed(ids_1T)
        states_1TD = segment_forward(model, None, embeds_1TD, None, 0).token_hidden_BMD
    states, embeddings = (float(x.double().norm(dim=-1).mean()) for x in (states_1TD, embeds_1TD))
    if not (math.isfinite(states) and math.isfinite(embeddings) and states and embeddings):
        raise UserError(
            "The model's final states or embeddings are zero or not finite: no vector_scale follows from them.",
            "Give vector_scale as a number.",
        )
    return float(f"{embeddings / states:.3g}")
