"""Continuations of prompts that begin alike: what they share is read once and kept once, and all go on as one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lmlab.models.attention.cache import KVCache
from lmlab.models.generation.checks import check_prompts
from lmlab.models.generation.choosing import choose_tokens
from lmlab.models.generation.config import DecodingConfig
from lmlab.models.generation.continuation import Continuation, Decode
from lmlab.models.generation.decoding import evaluating, left_pad
from lmlab.models.transformer import Transformer


def common_beginning(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with; at least one token of each is left."""
    shortest = min(map(len, prompts)) - 1
    first = prompts[0]
    for place in range(shortest):
        if any(prompt[place] != first[place] for prompt in prompts[1:]):
            return place
    return shortest


def continue_shared(
    model: Transformer, asked: Sequence[tuple[Sequence[int], DecodingConfig]], decode: Decode | None = None
) -> list[Continuation]:
    """One continuation of each prompt (`num_samples` is taken as 1), as `Decoding` gives them, apart from rounding.

    The keys and values of the common beginning are in memory once, whatever the number of prompts.

    Raises:
        UserError: as `Decoding.add`.
    """
    check_prompts(model, asked, decode)
    rows = [Continuation(prompt, config, 0) for prompt, config in asked]
    prompts = [list(prompt) for prompt, _ in asked]
    shared = common_beginning(prompts)
    weight = model.embedding.weight
    room = max(len(prompt) - shared + config.max_new_tokens for prompt, config in asked)
    with evaluating(model):
        cache = KVCache(model.config, len(rows), room, weight.dtype, weight.device)
        if shared:
            beginning = KVCache(model.config, 1, shared, weight.dtype, weight.device)
            model(torch.tensor([prompts[0][:shared]], device=weight.device), cache=beginning, logits="none")
            cache = beginning.fork(len(rows), room)
        ids_RT, valid_RT = left_pad([prompt[shared:] for prompt in prompts], weight.device)
        logits_RTV = model(ids_RT, attention_mask_BT=valid_RT, cache=cache, logits="last").logits_BTV
        choose_tokens(rows, logits_RTV[:, 0].float(), decode)
        while not all(row.done for row in rows):
            ids_R1 = torch.tensor([[max(row.last, 0)] for row in rows], device=weight.device)
            logits_RTV = model(ids_R1, cache=cache, logits="last").logits_BTV
            choose_tokens(rows, logits_RTV[:, 0].float(), decode)
    return rows
