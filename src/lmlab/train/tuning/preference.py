"""Step functions for learning from preferences: DPO and its kin, SimPO, KTO.

Shapes: B rows, T tokens. Log-probabilities are natural and summed over the learned tokens of a row.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from lmlab.config import Config
from lmlab.data import Batch
from lmlab.models import IGNORE, Transformer
from lmlab.train.steps.step import StepFunction, StepOutput


class DPOConfig(Config):
    """Learning from pairs against a frozen reference.

    Attributes:
        beta: how strongly the model is held to the reference.
        loss: `sigmoid` is DPO; `ipo` the squared loss of Azar et al. 2023 (eq. 17), on log-probabilities a token;
            `hinge` that of SLiC.
        label_smoothing: the share of pairs that are taken to be labeled wrongly (conservative DPO); for `sigmoid`.
        length_normalized: use log-probabilities a token in place of a sequence, in policy and reference.
    """

    beta: PositiveFloat = 0.1
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    length_normalized: bool = False


class SimPOConfig(Config):
    """Learning from pairs without a reference; `margin` is gamma, by which the better answer's reward is to lead."""

    beta: PositiveFloat = 2.0
    margin: float = Field(default=1.0, ge=0)


class KTOConfig(Config):
    """Learning from single answers that are wanted or not; the weights balance the two kinds when one is rarer."""

    beta: PositiveFloat = 0.1  # as Ethayarajh et al. 2024 have it
    desirable_weight: PositiveFloat = 1.0
    undesirable_weight: PositiveFloat = 1.0


def sequence_log_probs(
    model: Transformer, input_ids_BT: Tensor, labels_BT: Tensor, document_ids_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The log-probability of each row's labels, [B], with gradients, and how many labels it has, [B].

    The logits of a batch never exist at once (`Transformer.log_probs_of`). Labels are shifted (the next token), -100
    where they do not count.
    """
    hidden_BTD = model(input_ids_BT, document_ids_BT=document_ids_BT, logits="none").hidden_BTD
    log_probs_BT = model.log_probs_of(hidden_BTD, labels_BT)
    return log_probs_BT.sum(1), (labels_BT != IGNORE).sum(1)


def dpo_step(config: DPOConfig) -> StepFunction:
    """The step function of DPO (Rafailov et al. 2023, eq. 7): -log sigmoid(beta h), where h is by how much more the
    model prefers the chosen answer than the reference does.

    It reads rows of `PreferenceRows` with the fields `reference_chosen` and `reference_rejected`. Its loss is a mean
    over pairs.
    """

    def step(model: Transformer, batch: Batch) -> StepOutput:
        (chosen_B, rejected_B), (num_chosen_B, num_rejected_B) = _pairs(model, batch, "chosen_", "rejected_")
        sums = _mean("logps_chosen", chosen_B) | _mean("logps_rejected", rejected_B)
        chosen_B = chosen_B - batch["reference_chosen"]
        rejected_B = rejected_B - batch["reference_rejected"]
        if config.length_normalized or config.loss == "ipo":
            chosen_B, rejected_B = chosen_B / num_chosen_B.clamp(min=1), rejected_B / num_rejected_B.clamp(min=1)
        loss_B = _dpo_loss(config, chosen_B - rejected_B)
        return StepOutput(
            loss_B.sum(), _count(loss_B), sums | _rewards(config.beta * chosen_B, config.beta * rejected_B)
        )

    return step


def simpo_step(config: SimPOConfig) -> StepFunction:
    """The step function of SimPO (Meng et al. 2024, eq. 6): -log sigmoid(beta (mean log p(chosen) - mean log
    p(rejected)) - gamma).
    """

    def step(model: Transformer, batch: Batch) -> StepOutput:
        (chosen_B, rejected_B), (num_chosen_B, num_rejected_B) = _pairs(model, batch, "chosen_", "rejected_")
        sums = _mean("logps_chosen", chosen_B) | _mean("logps_rejected", rejected_B)
        chosen_B, rejected_B = (
            config.beta * x / n.clamp(min=1) for x, n in ((chosen_B, num_chosen_B), (rejected_B, num_rejected_B))
        )
        loss_B = -F.logsigmoid(chosen_B - rejected_B - config.margin)
        return StepOutput(loss_B.sum(), _count(loss_B), sums | _rewards(chosen_B, rejected_B))

    return step


def kto_step(config: KTOConfig) -> StepFunction:
    """The step function of KTO (Ethayarajh et al. 2024, eq. 8): weight (1 - sigmoid(+-beta (log-ratio to the reference
    - z))).

    z, the divergence from the reference, is estimated from the mismatched pairs of the micro-batch, not below 0 and
    without gradients: take micro-batches of several rows. It reads rows of `KTORows` with the fields `reference` and
    `reference_kl`. Its loss is a mean over answers.
    """

    def step(model: Transformer, batch: Batch) -> StepOutput:
        with torch.no_grad():
            mismatched_B, _ = sequence_log_probs(
                model, batch["kl_input_ids"], batch["kl_labels"], batch["kl_document_ids"]
            )
            divergence = (mismatched_B - batch["reference_kl"]).mean().clamp(min=0)
        log_probs_B, _ = sequence_log_probs(model, batch["input_ids"], batch["labels"], batch["document_ids"])
        ratio_B = log_probs_B - batch["reference"]
        desirable_B = batch["desirable"].bool()
        sign_B = torch.where(desirable_B, 1.0, -1.0)
        weight_B = torch.where(desirable_B, config.desirable_weight, config.undesirable_weight)
        loss_B = weight_B * (1 - torch.sigmoid(config.beta * sign_B * (ratio_B - divergence)))
        sums = {"kl": (divergence * len(loss_B), _count(loss_B))}
        for name, which_B in (("chosen", desirable_B), ("rejected", ~desirable_B)):
            sums |= _mean(f"rewards_{name}", config.beta * ratio_B, which_B) | _mean(
                f"logps_{name}", log_probs_B, which_B
            )
        return StepOutput(loss_B.sum(), _count(loss_B), sums)

    return step


def _dpo_loss(config: DPOConfig, lead_B: Tensor) -> Tensor:
    match config.loss:
        case "sigmoid":
            right_B, wrong_B = F.logsigmoid(config.beta * lead_B), F.logsigmoid(-config.beta * lead_B)
            return -(1 - config.label_smoothing) * right_B - config.label_smoothing * wrong_B
        case "ipo":
            return (lead_B - 1 / (2 * config.beta)).square()
        case "hinge":
            return F.relu(1 - config.beta * lead_B)


def _pairs(model: Transformer, batch: Batch, *sides: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Log-probabilities and numbers of labels of the sides, [B] each, from one forward pass."""
    ids_BT, labels_BT, documents_BT = (
        torch.cat([batch[side + name] for side in sides]) for name in ("input_ids", "labels", "document_ids")
    )
    log_probs_B, count_B = sequence_log_probs(model, ids_BT, labels_BT, documents_BT)
    return log_probs_B.chunk(len(sides)), count_B.chunk(len(sides))


def _rewards(chosen_B: Tensor, rejected_B: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    margin_B = chosen_B - rejected_B
    named = {
        "rewards_chosen": chosen_B,
        "rewards_rejected": rejected_B,
        "margins": margin_B,
        "accuracies": (margin_B > 0).float(),
    }
    return {key: value for name, x_B in named.items() for key, value in _mean(name, x_B).items()}


def _mean(name: str, x_B: Tensor, which_B: Tensor | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    x_B = x_B.detach() if which_B is None else x_B.detach()[which_B]
    return {name: (x_B.sum(), _count(x_B))}


def _count(x_B: Tensor) -> Tensor:
    return torch.tensor(float(len(x_B)))
