"""What all blocks of one forward pass share, from its tokens: who sees whom, positions, rotations; and what cannot be.

Shapes: B batch, T tokens, S keys, D model width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.models.attention.attention import AttentionContext
from lmlab.models.attention.backends import Backend, is_half
from lmlab.models.attention.cache import KVCache
from lmlab.models.attention.rope import rotary_table
from lmlab.models.attention.visibility import Visibility
from lmlab.models.config import ModelConfig
from lmlab.models.dtypes import compute_dtype
from lmlab.models.forward.tokens import Tokens
from lmlab.models.internals.taps import Taps
from lmlab.models.memory.rows import Before, KVRows


def look_around(
    config: ModelConfig, tokens: Tokens, visible_BTS: Tensor | None, cache: KVCache | None
) -> tuple[Visibility, Tensor]:
    """What each token sees, and the positions [B or 1, T]. A cache makes room for the tokens."""
    explicit_BT = tokens.position_ids_BT
    if visible_BTS is not None and (
        tokens.document_ids_BT is not None or tokens.valid_BT is not None or explicit_BT is None
    ):
        raise ValueError(
            "visible_BTS takes the place of document_ids_BT and attention_mask_BT, and needs position_ids_BT"
        )
    if cache is not None:
        _check_generates(config)
        if tokens.document_ids_BT is not None:
            raise ValueError("a cache holds one document a row; document_ids_BT cannot be combined with it")
        cache.extend(tokens.length, tokens.valid_BT, explicit_BT)
    if visible_BTS is not None:
        places_BS, keys = explicit_BT, visible_BTS.shape[2]
        assert places_BS is not None
        if cache is not None and keys > tokens.length:
            held = cache.places()[:, : keys - tokens.length].expand(len(places_BS), -1)
            places_BS = torch.cat((held, places_BS), 1)
        visibility = Visibility(tokens.length, keys, mask_BTS=visible_BTS[:, None], key_positions_BS=places_BS)
        visibility.is_tree = True
    else:
        visibility = tokens.visibility if cache is None else cache.visibility(tokens.length)
    if explicit_BT is not None:
        return visibility, explicit_BT
    if cache is not None:
        return visibility, cache.positions(tokens.length)
    table = config.max_seq_len
    if config.positions == "learned" and tokens.document_ids_BT is None and tokens.length > table:
        raise ValueError(f"{tokens.length} tokens do not fit the model's table of {table} positions")
    return visibility, tokens.positions()


def _check_generates(config: ModelConfig) -> None:
    """Refuse a cache where a token depends on later ones."""
    if config.moe is not None and config.moe.router == "expert_choice":
        raise UserError(
            "A model with router expert_choice cannot generate: experts choose among all tokens of a text, also"
            " later ones.",
            "Generate with a model whose router is token_choice.",
        )
    if not config.causal:
        raise UserError("A model that is not causal cannot generate: every token sees the whole text.")


def context_of(
    config: ModelConfig,
    backend: Backend,
    x_BTD: Tensor,
    visibility: Visibility,
    position_ids_BT: Tensor,
    cache: KVCache | None,
    taps: Taps | None,
    starts_BT: Tensor | None = None,
    memory: KVRows | None = None,
) -> AttentionContext:
    """What all blocks share; `starts_BT` says where each token's document begins, None if a row is one text. `memory`
    is what was given with these tokens; what a cache holds is found there.
    """
    dtype = compute_dtype(x_BTD)
    rotary = sliding_rotary = None
    if config.positions == "rotary":
        _check_length(config, position_ids_BT, visibility, cache is not None or memory is not None)
        rotary = rotary_table(config, position_ids_BT, dtype, starts_BT=starts_BT)
        if config.sliding_rope_theta is not None and "sliding" in config.attention_kinds:
            sliding_rotary = rotary_table(config, position_ids_BT, dtype, sliding=True)
    held = memory if cache is None else cache.memory
    if held is not None:
        before = Before(held, visibility, config.num_heads, position_ids_BT, in_cache=cache is not None)
        return AttentionContext(visibility, rotary, sliding_rotary, cache, backend, taps, position_ids_BT, before)
    if backend == "auto":
        half = is_half(dtype) and config.attention_soft_cap is None
        for kind in set(config.attention_kinds):
            window = config.sliding_window if kind == "sliding" else None
            seen = visibility if window is None else visibility.within(window, x_BTD.device)
            seen.prepare(len(x_BTD), x_BTD.device, half)
    return AttentionContext(visibility, rotary, sliding_rotary, cache, backend, taps, position_ids_BT)


def _check_length(config: ModelConfig, position_ids_BT: Tensor, visibility: Visibility, continues: bool) -> None:
    """Refuse passes that would need one token's rotation for several lengths of its text.

    Raises:
        UserError: earlier tokens have the rotation of short texts and these that of long ones (LongRoPE), or
            branches of a tree would share a beginning.
    """
    scaling, tree = config.rope_scaling, visibility.is_tree
    if scaling is None or not scaling.depends_on_length or not (continues or tree):
        return
    original = scaling.original_max_seq_len or 0
    longest, first = int(position_ids_BT.amax()) + 1, int(position_ids_BT[:, 0].amin())
    if longest > original and (tree or (scaling.type == "longrope" and 0 < first <= original)):
        raise UserError(
            f"The model's rope_scaling ({scaling.type}) rotates all tokens of a text of more than {original} tokens"
            f" in another way, so one of {longest} cannot go on from what was kept of a shorter one.",
            f"Keep the text within {original} tokens, or read it at once.",
        )


def check_before_text(cache: KVCache | None, visible_BTS: Tensor | None) -> None:
    """Refuse a soft prompt, or a memory, that would not stand before the text."""
    if visible_BTS is not None:
        raise ValueError("visible_BTS says nothing of the slots of a soft prompt or a memory; do not combine them")
    if cache is not None and (cache.length or cache.prefix is not None):
        raise ValueError(
            "a soft prompt or a memory stands before the text: give it with the first tokens, to an empty cache"
        )


def behind(memory: KVRows, tokens: Tokens, cache: KVCache | None) -> Tokens:
    """The tokens at the positions after a memory, which a cache takes in; those without a position stay without.

    Raises:
        ValueError: the memory is for another number of rows.
    """
    rows = len(tokens.x_BTD)
    if memory.batch_size not in (1, rows):
        raise ValueError(f"a memory of {memory.batch_size} rows does not fit a batch of {rows}")
    if cache is not None:
        cache.take_in(memory)
    positions_BT = tokens.positions()
    next_B1 = memory.next_position_B.to(positions_BT.device)[:, None]
    return replace(tokens, position_ids_BT=torch.where(positions_BT >= 0, positions_BT + next_B1, positions_BT))
