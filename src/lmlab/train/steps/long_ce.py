"""LongCE: tokens that need what stands far before them weigh more (Fang et al. 2024, section 4)."""

from __future__ import annotations

from collections.abc import Sequence

from lmlab.data import Batch
from lmlab.models import IGNORE, Transformer, label_log_probs, long_short_difference
from lmlab.train.steps.step import StepFunction, StepOutput

CAP = 5.0
"""The greatest weight."""


def long_ce_step(
    context: int, slide: int | None = None, cap: float = CAP, begin_ids: Sequence[int] = ()
) -> StepFunction:
    """A step function whose loss weighs each token by min(exp(LSD), cap), LSD the gain of its logarithm by what stands
    more than `context` tokens before it, as the model itself has it at that moment. The plain loss is logged as
    `loss/plain`, and the mean weight as `weight`.

    Arguments:
        context: tokens of the short context.
        slide: tokens that a window of it tells; by default as many.
        begin_ids: what the tokenizer puts before every text; it stands before the windows too.
    """

    def step(model: Transformer, batch: Batch) -> StepOutput:
        ids, labels, documents = batch["input_ids"], batch["labels"], batch["document_ids"]
        log_probs_BT = label_log_probs(model, ids, labels, documents)
        gain_BT = long_short_difference(
            model,
            ids,
            labels,
            documents,
            context=context,
            slide=slide or context,
            all_BT=log_probs_BT.detach(),
            begin_ids=begin_ids,
        )
        counted_BT = labels != IGNORE
        weights_BT = gain_BT.exp().clamp(max=cap) * counted_BT
        count = counted_BT.sum()
        plain = -log_probs_BT.detach().sum()
        return StepOutput(
            -(weights_BT * log_probs_BT).sum(),
            count,
            {"loss/plain": (plain, count), "weight": (weights_BT.sum(), count)},
        )

    return step
