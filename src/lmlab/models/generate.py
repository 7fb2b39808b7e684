"""Generation with a key-value cache: batches of unequal prompts, greedy or sampled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.models.cache import KVCache
from lmlab.models.transformer import Transformer


@torch.no_grad()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    eos_id: int | None = None,
) -> list[list[int]]:
    """Continue prompts of token ids.

    Arguments:
        prompts: one list of ids each, of any lengths, none empty.
        max_new_tokens: most tokens to add to each.
        temperature: 0 is greedy.
        top_k: sample among the k most probable tokens.
        top_p: sample among the fewest tokens that hold this probability (Holtzman et al. 2020).
        seed: of the draws.
        eos_id: a row ends when it draws this id, which is not returned.

    Returns:
        the new ids of each prompt.

    Raises:
        UserError: an empty prompt, or a prompt and its continuation that exceed the model's `max_seq_len`.
    """
    lengths = [len(prompt) for prompt in prompts]
    if not prompts or min(lengths) == 0:
        raise UserError("Every prompt needs at least one token.")
    longest, limit = max(lengths), model.config.max_seq_len
    if longest + max_new_tokens > limit:
        raise UserError(
            f"The longest prompt has {longest} tokens; with {max_new_tokens} new ones it exceeds the model's {limit}.",
            "Shorten the prompt or lower --max-new-tokens.",
        )
    device = model.embedding.weight.device
    ids, valid = _left_pad(prompts, longest, device)
    cache = KVCache(model.config, len(prompts), longest + max_new_tokens, model.embedding.weight.dtype, device)
    generator = torch.Generator(device).manual_seed(seed)
    done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    new: list[Tensor] = []
    was_training = model.training
    model.eval()
    for _ in range(max_new_tokens):
        logits = model(ids, attention_mask_BT=valid, cache=cache, logits="last").logits_BTV[:, 0].float()
        chosen = sample(logits, temperature, top_k, top_p, generator)
        new.append(chosen)
        if eos_id is not None:
            done |= chosen == eos_id
            if bool(done.all()):
                break
        ids, valid = chosen[:, None], torch.ones_like(chosen[:, None], dtype=torch.bool)
    model.train(was_training)
    rows = torch.stack(new, 1).tolist() if new else [[] for _ in prompts]
    return [row[: row.index(eos_id)] if eos_id in row else row for row in rows]


def sample(logits_BV: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator) -> Tensor:
    """Draw one id a row, [B], from logits [B, V] filtered by `top_k`, then by `top_p`; temperature 0 takes the most probable."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    logits = logits_BV / temperature
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p is not None:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        beyond = probabilities.cumsum(-1) - probabilities >= top_p
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def _left_pad(prompts: Sequence[Sequence[int]], length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    valid = torch.zeros(len(prompts), length, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        valid[row, length - len(prompt) :] = True
    return ids.to(device), valid.to(device)
