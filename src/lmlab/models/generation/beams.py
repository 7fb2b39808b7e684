"""Beam search: the likeliest continuations as wholes, found by keeping several at each step (Graves 2012, section 3).

Shapes: R beams, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lmlab.errors import UserError
from lmlab.models.attention.cache import KVCache
from lmlab.models.generation.checks import check_prompts
from lmlab.models.generation.choosing import not_numbers
from lmlab.models.generation.config import DecodingConfig
from lmlab.models.generation.decoding import evaluating
from lmlab.models.prompts.soft_prompt import SoftPrompt
from lmlab.models.transformer import Transformer


@dataclass(frozen=True)
class Beam:
    """One continuation.

    Attributes:
        ids: its tokens, without the one of `eos_ids` that ended it.
        log_prob: natural-log probability of all of them, that of the end included.
        ended: whether it has ended by itself.
    """

    ids: tuple[int, ...]
    log_prob: float
    ended: bool

    def score(self, length_penalty: float) -> float:
        """The log-probability over the number of tokens, to the power `length_penalty`."""
        return self.log_prob / max(1, len(self.ids) + self.ended) ** length_penalty


def beam_search(
    model: Transformer,
    prompt: Sequence[int],
    num_beams: int,
    max_new_tokens: int,
    *,
    eos_ids: Sequence[int] = (),
    length_penalty: float = 1.0,
    soft_prompt: SoftPrompt | None = None,
) -> list[Beam]:
    """The best continuations of a prompt, best first. Keys and values, those of a soft prompt too, follow their beams.

    Arguments:
        length_penalty: what a log-probability is divided by is the length to this power; 0 compares sums.
        soft_prompt: vectors before the prompt, of one row.

    Raises:
        UserError: the prompt is empty, the window is exceeded, or there are no beams.
        LmlabError: the logits after a beam are not numbers.
    """
    if num_beams < 1:
        raise UserError(f"{num_beams} beams: at least 1 is needed.")
    check_prompts(model, [(prompt, DecodingConfig(max_new_tokens=max_new_tokens))], None, soft_prompt)
    ends, weight = set(eos_ids), model.embedding.weight
    finished: list[Beam] = []
    beams = [Beam((), 0.0, False)]
    with evaluating(model):
        before = 0 if soft_prompt is None else soft_prompt.length
        slots = before + len(prompt) + max_new_tokens
        cache = KVCache(model.config, 1, slots, weight.dtype, weight.device)
        ids_RT = torch.tensor([list(prompt)], device=weight.device)
        logits_RV = model(ids_RT, cache=cache, soft_prompt=soft_prompt, logits="last").logits_BTV[:, -1]
        for step in range(max_new_tokens):
            so_far_R1 = torch.tensor([[beam.log_prob] for beam in beams], dtype=torch.float64, device=weight.device)
            total_RV = so_far_R1 + logits_RV.double().log_softmax(-1)
            if bool(total_RV.isnan().any()):
                raise not_numbers()
            # twice as many as beams: at least so many of them go on where all others end
            count = min(2 * num_beams, total_RV.numel())
            values, places = total_RV.flatten().topk(count)
            going: list[tuple[int, int, Beam]] = []
            for value, place in zip(values.tolist(), places.tolist(), strict=True):
                row, token = divmod(place, total_RV.shape[1])
                if token in ends:
                    finished.append(Beam(beams[row].ids, value, True))
                elif len(going) < num_beams:
                    going.append((row, token, Beam((*beams[row].ids, token), value, False)))
            beams = [beam for _, _, beam in going]
            if not beams or step + 1 == max_new_tokens:
                break
            cache.select([row for row, _, _ in going])
            ids_RT = torch.tensor([[token] for _, token, _ in going], device=weight.device)
            logits_RV = model(ids_RT, cache=cache, logits="last").logits_BTV[:, -1]
    return sorted([*finished, *beams], key=lambda beam: -beam.score(length_penalty))[:num_beams]
