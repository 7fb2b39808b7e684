"""The step function of many seeds: a loss for each, which no other seed's can disturb.

Shapes: S seeds, B sequences, N places, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lmlab.data import Batch
from lmlab.errors import LmlabError
from lmlab.methods.transformer_programs.config import FitConfig
from lmlab.methods.transformer_programs.network.sampling import NOISY, Noise, Sampler
from lmlab.methods.transformer_programs.tasks.dataset import Split
from lmlab.methods.transformer_programs.training.packed import PackedNetworks
from lmlab.methods.transformer_programs.training.selection import Selection
from lmlab.progress import console
from lmlab.train import StepOutput

_MEMORY = 0.98  # of the moving mean of losses: fifty steps


@dataclass(frozen=True)
class Temperature:
    """The temperature of each step: it falls from epoch to epoch, and evenly within each (section 3.5). The last epoch
    stays at its own; where it is the only one, the temperature falls within it, else nothing would be learned.
    """

    start: float
    end: float
    schedule: str
    epochs: int
    steps: int

    def at(self, step: int) -> float:
        """Of a step, counted from 0."""
        per_epoch = max(1, self.steps // max(1, self.epochs))
        epoch, within = divmod(step, per_epoch)
        falling = epoch < self.epochs - 1
        progress = (epoch + within / max(1, per_epoch - 1)) / (self.epochs - 1) if falling else 1.0
        if self.epochs == 1:
            progress = min(1.0, step / max(1, self.steps - 1))
        if self.schedule == "linspace":
            return self.start + (self.end - self.start) * progress
        return float(self.start * (self.end / self.start) ** progress)


class ProgramStep:
    """The loss of a batch, summed over seeds and sequences.

    Arguments:
        split: the training data; batches are numbers of its rows.
        selection: which seeds stop, and which layers are fixed, after a step.
    """

    def __init__(
        self, split: Split, config: FitConfig, temperature: Temperature, selection: Selection | None = None
    ) -> None:
        self.split, self.config, self.temperature, self.selection = split, config, temperature, selection

    def __call__(self, model: PackedNetworks, batch: Batch) -> StepOutput:
        """The loss of the rows of `batch["rows"]` (1, B)."""
        rows = batch["rows"].flatten()
        tokens, labels = self.split.tokens[rows], self.split.labels[rows]
        longest = int((tokens != 0).sum(1).max())
        tokens = tokens[:, :longest]
        labels = labels[:, :longest] if labels.dim() == 2 else labels
        step = int(model.num_steps)
        tau = self.temperature.at(step)
        if self.config.freeze < 1:
            model.frozen.fill_(self.frozen(step, model.spec.num_layers))
        model.keep()
        losses_S = self._losses(model, tokens, labels, tau, step)
        while bool((fresh_S := ~losses_S.isfinite() & ~model.idle).any()):
            self._bury(model, fresh_S, step, tau)
            # once more without them: what is no number would spread by multiplication with 0
            losses_S = self._losses(model, tokens, labels, tau, step)
        count = torch.tensor(float(len(rows)))
        total = losses_S.masked_fill(model.idle, 0.0).sum()
        moved = torch.lerp(losses_S.detach(), model.loss, _MEMORY if step else 0.0)
        model.loss.copy_(torch.where(model.idle, model.loss, moved))
        return StepOutput(total * count, count, {"tau": (torch.tensor(tau), torch.tensor(1.0))})

    def _losses(self, model: PackedNetworks, tokens: Tensor, labels: Tensor, tau: float, step: int) -> Tensor:
        """(S,): the mean over sequences of each seed."""
        total: Tensor | None = None
        for number in range(self.config.samples):
            logits = model(tokens, self.sampler(model, step, tau, number))
            loss = sequence_losses(logits, labels, self.config.loss).mean(-1)
            total = loss if total is None else total + loss
        assert total is not None
        return total / self.config.samples

    def sampler(self, model: PackedNetworks, step: int, tau: float, number: int = 0) -> Sampler:
        """How all seeds choose at a step; `number` counts its samples."""
        config = self.config
        noisy = config.sampling in NOISY or (config.attention_noise and config.attention == "softmax")
        device = model.packed.device
        noise = Noise(model.seeds, step * config.samples + number, device) if noisy else None
        return Sampler(config.sampling, tau, noise, config.gradient_tau, alpha=self.alpha(step))

    def alpha(self, step: int) -> float:
        """Of entmax: it rises evenly."""
        start, progress = self.config.alpha_start, step / max(1, self.temperature.steps - 1)
        return start + (self.config.alpha_end - start) * progress

    def frozen(self, step: int, layers: int) -> int:
        """How many layers are fixed at a step: all but the classifier before the end."""
        start, progress = self.config.freeze, step / self.temperature.steps
        return 0 if progress < start else min(layers, 1 + int(layers * (progress - start) / (1 - start)))

    def _bury(self, model: PackedNetworks, fresh: Tensor, step: int, tau: float) -> None:
        model.bury(fresh)
        names = ", ".join(str(model.seeds[each]) for each in fresh.nonzero().flatten().tolist())
        told = f"The loss of seed {names} is no number at step {step + 1} (temperature {tau:.3g}); "
        if not bool(model.idle.all()):
            console.print(f"{told}it stops, the others go on.")
            return
        again = model.resume_stopped()
        if again is None:
            raise LmlabError(
                f"The loss of every seed is no number (temperature {tau:.3g}).", "Lower the learning rate."
            )
        console.print(f"{told}it stops. Seed {model.seeds[again]}, which had stopped behind it, goes on in its place.")

    def after_step(self, model: PackedNetworks) -> Mapping[str, float]:
        """Count the step, and select."""
        model.restore()
        model.num_steps += 1
        if self.selection is not None:
            self.selection(model)
        return {}


def sequence_losses(logits: Tensor, labels: Tensor, how: str) -> Tensor:
    """(S, B): the cross-entropy of each sequence over its labeled places (section 2.9).

    Arguments:
        logits: (S, B, N, C), or (S, B, C).
        labels: (B, N) or (B,); negative where nothing is predicted.
    """
    log_probs = torch.log_softmax(logits, -1)
    labeled = labels >= 0
    chosen = labels.clamp(min=0).expand(logits.shape[:-1])[..., None]
    losses = -log_probs.gather(-1, chosen)[..., 0] * labeled
    if labels.dim() == 1:
        return losses
    summed = losses.sum(-1)
    return summed if how == "per_seq" else summed / labeled.sum(-1).clamp(min=1)
