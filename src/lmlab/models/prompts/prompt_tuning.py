"""Prompt tuning (Lester et al. 2021): a frozen model behind a soft prompt that is learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lmlab.models.forward.output import TransformerOutput
from lmlab.models.prompts.soft_prompt import SoftPrompt
from lmlab.models.transformer import Transformer


class PromptTuned(nn.Module):
    """What the trainer learns a prompt with: called as the model is, it gives what the model gives after the prompt.

    The prompt starts as embeddings of tokens (section 3.2): those of `init_ids`, repeated to its length, or of tokens
    drawn from the whole vocabulary.

    Arguments:
        model: it is frozen, and left in evaluation mode.
        length: P, the number of vectors.
        positions: as in `SoftPrompt`.
        seed: of the tokens that are drawn.

    Attributes:
        prompt_PD: the vectors, in fp32 at least whatever the type of the model, so that small steps are not lost in
            rounding.
    """

    def __init__(
        self,
        model: Transformer,
        length: int,
        *,
        positions: bool = True,
        init_ids: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.positions = model.eval().requires_grad_(False), positions
        if init_ids:
            ids = torch.tensor([init_ids[place % len(init_ids)] for place in range(length)])
        else:
            generator = torch.Generator().manual_seed(seed)
            ids = torch.randint(0, model.config.vocab_size, (length,), generator=generator)
        rows_PD = model.embedding.weight[ids.to(model.embedding.weight.device)].detach()
        self.prompt_PD = nn.Parameter(rows_PD.to(torch.promote_types(rows_PD.dtype, torch.float32)).clone())

    @property
    def soft_prompt(self) -> SoftPrompt:
        """The prompt as a value; gradients flow through it."""
        return SoftPrompt(self.prompt_PD[None], self.positions)

    def train(self, mode: bool = True) -> PromptTuned:
        """Only the prompt is trained: the model stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, *arguments: Any, **named: Any) -> TransformerOutput:
        """`Transformer.forward`, after the prompt."""
        output: TransformerOutput = self.model(*arguments, soft_prompt=self.soft_prompt, **named)
        return output
