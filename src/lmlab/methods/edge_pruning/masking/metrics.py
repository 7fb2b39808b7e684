"""What a model does on a task, for each example a number with a gradient: higher is better.

Shapes: B examples, P positions, V tokens, A tokens among which the model chooses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.methods.edge_pruning.config import Metric

if TYPE_CHECKING:
    from lmlab.methods.edge_pruning.masking.counterfactuals import Counterfactuals


def last(task: Counterfactuals, each_BPV: Tensor, index_B: Tensor) -> Tensor:
    """Logits or outputs at the last position where the model answers, [B, V]."""
    place_B = task.examples.weights[index_B].to(each_BPV.device).sum(1).long() - 1
    return each_BPV[torch.arange(len(each_BPV), device=each_BPV.device), place_B]


def logit_difference(task: Counterfactuals, logits_BPV: Tensor, index_B: Tensor) -> Tensor:
    """Logit of the answer minus that of the distractor at the last position, [B]."""
    answers_B, distractors_B = (
        each[index_B].to(logits_BPV.device) for each in (task.examples.answers, task.examples.distractors)
    )
    last_BV = last(task, logits_BPV, index_B)
    return last_BV.gather(1, answers_B[:, None])[:, 0] - last_BV.gather(1, distractors_B[:, None])[:, 0]


def right_and_wrong(task: Counterfactuals, index_B: Tensor, like_BA: Tensor) -> tuple[Tensor, Tensor]:
    """1 for the tokens of `Counterfactuals.outputs` that are right, and for those that are wrong, 0 else, [B, A]."""
    if task.examples.signs is not None:
        signs_BA = task.examples.signs[index_B].to(like_BA)
        return (signs_BA > 0).to(like_BA), (signs_BA < 0).to(like_BA)
    places = _places(task, index_B, like_BA.device)
    right_BA, wrong_BA = (torch.zeros_like(like_BA).scatter(1, each_B1, 1.0) for each_B1 in places)
    return right_BA, wrong_BA


def _places(task: Counterfactuals, index_B: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """The places of answers and distractors among the tokens that can be chosen, [B, 1] each."""
    examples, found = task.examples, []
    for tokens_B in (examples.answers[index_B], examples.distractors[index_B]):
        places_B = tokens_B
        if examples.answer_ids is not None:
            places_B = (tokens_B[:, None] == torch.tensor(examples.answer_ids)).int().argmax(1)
        found.append(places_B.to(device)[:, None])
    return found[0], found[1]


def values(task: Counterfactuals, outputs_BPA: Tensor, index_B: Tensor, metric: Metric) -> Tensor:
    """The metric of each example at the last position, [B].

    Arguments:
        outputs_BPA: log-probabilities, as `Counterfactuals.outputs` gives them.
        metric: `logit_difference`: of the answer and the distractor; `log_odds`: the same of all right and all wrong
            answers together; `probability`: of the right answers; `probability_difference`: of right and wrong ones;
            `accuracy`: the most probable token is right, which has no gradient.
    """
    chosen_BA = last(task, outputs_BPA, index_B)
    if metric == "logit_difference":
        answers_B1, distractors_B1 = _places(task, index_B, chosen_BA.device)
        return (chosen_BA.gather(1, answers_B1) - chosen_BA.gather(1, distractors_B1))[:, 0]
    right_BA, wrong_BA = right_and_wrong(task, index_B, chosen_BA)
    if metric == "accuracy":
        return right_BA.gather(1, chosen_BA.argmax(1, keepdim=True))[:, 0]
    if metric == "log_odds":
        right_B, wrong_B = (chosen_BA.masked_fill(part == 0, -torch.inf).logsumexp(1) for part in (right_BA, wrong_BA))
        return right_B - wrong_B
    weights_BA = right_BA if metric == "probability" else right_BA - wrong_BA
    return (chosen_BA.exp() * weights_BA).sum(1)


def require_metric(task: Counterfactuals, metric: Metric, gradients: bool = False) -> None:
    """See that examples have a metric, and if asked for that it has gradients.

    Raises:
        UserError: one of them is missing.
    """
    if metric != "distance" and not task.examples.has_answers:
        raise UserError(
            f"The metric {metric} needs examples with answers; these have none.",
            "Give each line an answer and a distractor, or take --metric distance.",
        )
    if metric == "accuracy" and gradients:
        raise UserError(
            "Accuracy has no gradient to follow.", "Take another --metric, or --method exact or acdc, which try edges."
        )
