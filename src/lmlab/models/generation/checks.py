"""What cannot be continued is refused before anything is read."""

from __future__ import annotations

from collections.abc import Sequence

from lmlab.errors import UserError
from lmlab.models.generation.config import DecodingConfig
from lmlab.models.generation.continuation import Decode
from lmlab.models.memory.memory import Memory
from lmlab.models.prompts.soft_prompt import SoftPrompt
from lmlab.models.transformer import Transformer


def check_prompts(
    model: Transformer,
    asked: Sequence[tuple[Sequence[int], DecodingConfig]],
    decode: Decode | None,
    soft_prompt: SoftPrompt | None = None,
    memory: Memory | None = None,
) -> None:
    """Refuse what cannot be continued.

    Raises:
        UserError: as `Decoding.add`.
    """
    check_asked(model, asked, decode)
    _check_reach(model, asked)
    limit = model.config.max_seq_len
    longest, new = max(((len(prompt), config.max_new_tokens) for prompt, config in asked), key=sum)
    before, behind = 0, ""
    if soft_prompt is not None and (before := soft_prompt.positions_taken):
        behind = f" behind a soft prompt of {before} {'vectors' if soft_prompt.budget is None else 'positions'}"
    if memory is not None and (before := int(memory.next_position.max())):
        behind = f" behind a memory of {before} positions"
    if before + longest + new > limit:
        raise UserError(
            f"The longest prompt has {longest} tokens{behind}; with {new} new ones it exceeds the model's {limit}.",
            "Shorten the prompt or lower max_new_tokens.",
        )


def check_asked(
    model: Transformer, asked: Sequence[tuple[Sequence[int], DecodingConfig]], decode: Decode | None
) -> None:
    """Refuse prompts that are none, whatever their lengths.

    Raises:
        UserError: an empty prompt, ids beyond the vocabulary, or stop strings without `decode`.
    """
    if not asked or min(len(prompt) for prompt, _ in asked) == 0:
        raise UserError("Every prompt needs at least one token.")
    if any(config.stop and (decode is None or "" in config.stop) for _, config in asked):
        raise UserError("Stop strings must not be empty, and they need a way to decode tokens.")
    vocabulary = model.config.vocab_size
    if not all(0 <= min(prompt) <= max(prompt) < vocabulary for prompt, _ in asked):
        raise UserError(f"A prompt has token ids beyond the model's vocabulary of {vocabulary}.")


def _check_reach(model: Transformer, asked: Sequence[tuple[Sequence[int], DecodingConfig]]) -> None:
    """Refuse continuations that would cross the length at which LongRoPE rotates all tokens in another way."""
    scaling = model.config.rope_scaling
    if scaling is None or scaling.type != "longrope":
        return
    border = scaling.original_max_seq_len or 0
    for prompt, config in asked:
        if len(prompt) <= border < len(prompt) + config.max_new_tokens:
            raise UserError(
                f"A prompt of {len(prompt)} tokens with {config.max_new_tokens} new ones crosses {border} tokens, where"
                " the model's rotary positions change for the whole text (longrope).",
                f"Lower max_new_tokens to {border - len(prompt)}, or give a prompt of more than {border} tokens.",
            )
