"""Which seeds go on, and which layers are fixed, while many seeds are trained.

- Successive halving (Jamieson and Talwalkar 2016): single seeds often stay on a plateau. Their loss is that of a
  network under noise, whose classifier follows it; what counts is the program, with the classifier that fits it best.
- Layers whose choices no longer move are fixed at their arg max, the first one first, so that those behind learn on
  what the program will compute.

Shapes: S seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from lmlab.methods.transformer_programs.config import FitConfig
from lmlab.methods.transformer_programs.training.packed import PackedNetworks

_LOOK = 10  # steps between two looks at the choices
_DROP = 0.01  # of accuracy, after which a layer is trained again


class Selection:
    """Called after each step.

    Arguments:
        steps: of the whole training.
        measure: the accuracy (S,) of the arg max on validation data.
        judge: the same of some seeds by their places, once their classifiers are fitted again.
    """

    def __init__(
        self,
        config: FitConfig,
        steps: int,
        measure: Callable[[PackedNetworks], Tensor],
        judge: Callable[[PackedNetworks, Sequence[int]], Sequence[float]],
    ) -> None:
        self.config, self.measure, self.judge = config, measure, judge
        self.halvings = {steps >> number for number in range(1, config.halvings + 1)}

    def __call__(self, model: PackedNetworks) -> None:
        """Stop the worse half of the seeds where it is time, and fix or release layers."""
        step = int(model.num_steps)
        if step in self.halvings:
            self._halve(model)
        if self.config.freeze_after is not None and step % _LOOK == 0:
            self._freeze(model, step, self.config.freeze_after)

    def _halve(self, model: PackedNetworks) -> None:
        active = [place for place, idle in enumerate(model.idle.tolist()) if not idle]
        worth = [-float(model.loss[place]) for place in active]
        if self.config.judge_by == "accuracy":
            worth = list(self.judge(model, active))
        order = [place for _, place in sorted(zip(worth, active, strict=True), key=lambda each: -each[0])]
        for place in order[(len(active) + 1) // 2 :]:
            model.stopped[place] = True

    def _freeze(self, model: PackedNetworks, step: int, patience: int) -> None:
        accuracy: Tensor | None = None
        choices = cache(model.choices)  # of all seeds, which nothing here moves
        for place in (~model.idle).nonzero().flatten().tolist():
            layer = int(model.frozen[place])
            # not counted from `since`, which moves with every choice of the layer behind
            if layer and step % patience < _LOOK:
                accuracy = self.measure(model) if accuracy is None else accuracy
                if float(accuracy[place]) < float(model.mark[place]) - _DROP:
                    model.frozen[place] -= 1
                    model.since[place] = step
                    continue
            if layer == model.spec.num_layers:
                continue
            print_ = fingerprint([each[place] for each in choices(layer)])
            if print_ != int(model.fingerprint[place]):
                model.fingerprint[place], model.since[place] = print_, step
            elif step - int(model.since[place]) >= patience:
                accuracy = self.measure(model) if accuracy is None else accuracy
                model.frozen[place] += 1
                model.since[place], model.mark[place] = step, accuracy[place]


def fingerprint(choices: list[Tensor]) -> int:
    """A number that changes when one of the choices does."""
    found = 0
    for number in torch.cat([each.flatten() for each in choices]).tolist() if choices else ():
        found = (found * 1_000_003 + number + 1) % (2**61 - 1)  # a polynomial modulo a prime
    return found
