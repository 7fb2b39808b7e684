"""Mixtures of experts while they learn: routers' losses beside that of any step function, and what routers do, from
their counts alone.

Shapes: L layers, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from lmlab.data import Batch
from lmlab.distributed import sum_over_all
from lmlab.models import ModelConfig, RouterLosses, Transformer, TransformerOutput
from lmlab.progress import console
from lmlab.train.steps.step import Evaluation, StepFunction, StepOutput, WrappedStep

_STEPS_UNTIL_DEAD = 100  # steps without a token
_HIGHEST_LOAD = 8.0  # relative to the mean
_HIGHEST_LOSS = 2.0  # of load balancing in the convention olmoe
_FIRST_STEPS = 100  # without warnings: routers that have just been drawn are uneven


class RoutedStep(WrappedStep):
    """A step function to which the losses of the model's routers are added, and which tells how experts are used.

    Per step it gives, beside the figures of the inner step function:

    - `task_loss`, and each loss of the routers as it is and, as `..._weighted`, times its coefficient
    - `routing/max_load`, `routing/min_load`: the highest and lowest load of an expert over the mean of its layer, of
      the most uneven layer; `routing/max_load/LAYER` for each layer
    - `routing/entropy`: the entropy of loads over its maximum, of the most uneven layer
    - `routing/dead_experts`: experts without a token for 100 steps

    Loads are counted once for each step, over all micro-batches and processes, without another forward pass. What looks
    wrong is said once.

    Arguments:
        step: of any kind; the losses of all its forward passes with gradients are added.
        model: its configuration.
        losses: False leaves the routers' losses out of what is learned; they are still measured.
    """

    def __init__(self, step: StepFunction, model: ModelConfig, losses: bool = True) -> None:
        super().__init__(step)
        self.config, self.losses = model, losses
        self._layers = [number for number, kind in enumerate(model.ffn_kinds) if kind == "moe"]
        self._counts_LE: Tensor | None = None
        self._balancing: list[Tensor] = []
        self._idle_steps: Tensor | None = None
        self._steps = 0
        self._said = set[str]()

    def __call__(self, model: Transformer, batch: Batch) -> StepOutput:
        """The loss and the figures of a micro-batch."""
        with _outputs(model) as seen:
            output = self.step(model, batch)
        found = [each.router_losses for each in seen if each.router_losses is not None]
        if not found:
            return output
        sums = {"task_loss": (output.loss_sum, output.count), **output.sums, **self._sums(found, output.count)}
        for each in found:
            self._counts_LE = each.counts_LE if self._counts_LE is None else self._counts_LE + each.counts_LE
            if each.load_balancing is not None:
                self._balancing.append(each.load_balancing.detach())
        if self._steps == 0:
            self._check_size(found[0])
        total = torch.stack([each.total for each in found]).sum() if self.losses else 0.0
        return replace(output, loss_sum=output.loss_sum + total * output.count, sums=sums)

    def close_step(self, model: Transformer) -> Mapping[str, float]:
        """Tell the model, and give the figures of loads."""
        if self._counts_LE is None:
            return {}
        counts_LE, self._counts_LE = sum_over_all(self._counts_LE), None
        model.end_step(counts_LE)
        self._steps += 1
        balancing, self._balancing = self._balancing, []
        moe = self.config.moe
        assert moe is not None
        if moe.router == "expert_choice":
            return {}
        if balancing and self._steps > _FIRST_STEPS and cast(Any, moe.load_balancing_loss).convention == "olmoe":
            high = bool(torch.stack(balancing).mean() > _HIGHEST_LOSS)
            self._warn(
                "loss",
                torch.full((len(self._layers),), high),
                f"have a load-balancing loss above {_HIGHEST_LOSS:g} in the mean",
            )
        return self._figures(counts_LE.cpu())

    def _sums(self, found: list[RouterLosses], count: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        moe = self.config.moe
        assert moe is not None
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        for name, settings in (("load_balancing", moe.load_balancing_loss), ("router_z", moe.router_z_loss)):
            values = [getattr(each, name) for each in found]
            if settings is not None and values[0] is not None:
                mean = torch.stack(values).mean().detach() * count
                sums |= {
                    f"{name}_loss": (mean, count),
                    f"{name}_loss_weighted": (mean * (settings.coef if self.losses else 0.0), count),
                }
        return sums

    def _figures(self, counts_LE: Tensor) -> dict[str, float]:
        loads_LE = counts_LE / counts_LE.mean(1, keepdim=True).clamp(min=1e-9)
        self._idle_steps = torch.where(counts_LE > 0, 0, 1 if self._idle_steps is None else self._idle_steps + 1)
        dead_LE = self._idle_steps >= _STEPS_UNTIL_DEAD
        most_L = loads_LE.amax(1)
        self._warn("dead", dead_LE.any(1), f"have experts without a token for {_STEPS_UNTIL_DEAD} steps")
        if self._steps > _FIRST_STEPS:
            self._warn(
                "load", most_L > _HIGHEST_LOAD, f"load an expert with more than {_HIGHEST_LOAD:g} times the mean"
            )
        return {
            "routing/max_load": float(most_L.max()),
            "routing/min_load": float(loads_LE.min()),
            "routing/entropy": float(normalized_entropy(counts_LE).min()),
            "routing/dead_experts": int(dead_LE.sum()),
            **{f"routing/max_load/{layer}": float(value) for layer, value in zip(self._layers, most_L, strict=True)},
        }

    def _warn(self, kind: str, which_L: Tensor, what: str) -> None:
        """Say what is wrong in which layers, once until it is right again."""
        if not bool(which_L.any()):
            self._said.discard(kind)
        elif kind not in self._said:
            self._said.add(kind)
            layers = ", ".join(str(layer) for layer, wrong in zip(self._layers, which_L.tolist(), strict=True) if wrong)
            console.print(f"Warning: the routers of layers {layers} {what}.", style="yellow")

    def _check_size(self, losses: RouterLosses) -> None:
        moe = self.config.moe
        assert moe is not None
        few = float(losses.num_tokens) * moe.top_k < 4 * moe.num_experts  # loads below four on average are chance
        if (
            few
            and moe.load_balancing_loss is not None
            and moe.load_balancing_loss.granularity != "global_batch"
            and "size" not in self._said
        ):
            self._said.add("size")
            text = (
                f"a micro-batch of {int(losses.num_tokens)} tokens is few for {moe.num_experts} experts, so loads are"
                " noisy"
            )
            console.print(f"Warning: {text}; set load_balancing_loss.granularity: global_batch.", style="yellow")


def routed(step: StepFunction, model: ModelConfig, losses: bool = True) -> StepFunction:
    """The step function as a `RoutedStep` if the model has mixtures of experts, else as it is."""
    return RoutedStep(step, model, losses) if "moe" in model.ffn_kinds else step


def with_saturation(evaluate: Evaluation) -> Evaluation:
    """An evaluation that also tells how many of each token's experts were chosen at the evaluation before, as
    `routing_saturation`.

    It is the saturation of Muennighoff et al. 2024 (section 5.1) between neighboring evaluations: it nears 1 when
    routing has settled. It needs the same tokens each time, and no pass of its own; a model without routers that choose
    gives none.
    """
    before: list[Tensor] = []

    def measured(model: Any) -> dict[str, float]:
        with _outputs(model) as seen:
            figures = evaluate(model)
        now = [
            torch.stack([each.indices.flatten(0, 1) for each in output.routers]).to("cpu", torch.int16)
            for output in seen
            if output.routers
        ]
        if now and len(before) == len(now) and all(a.shape == b.shape for a, b in zip(before, now, strict=True)):
            overlap = [
                (a[..., :, None] == b[..., None, :]).any(-1).double().mean((1, 2))
                for a, b in zip(before, now, strict=True)
            ]
            sizes = torch.tensor([each.shape[1] for each in now], dtype=torch.float64)
            by_layer_L = (torch.stack(overlap) * sizes[:, None]).sum(0) / sizes.sum()
            figures = {**figures, "routing_saturation": float(by_layer_L.mean())}
        before[:] = now
        return figures

    return measured


def normalized_entropy(counts: Tensor) -> Tensor:
    """The entropy of loads [..., E] over that of equal ones, [...]; 1 where nothing was counted."""
    shares = counts.double() / counts.sum(-1, keepdim=True).clamp(min=1e-9)
    entropy = -torch.xlogy(shares, shares).sum(-1)
    most = torch.log(torch.tensor(float(counts.shape[-1]), dtype=torch.float64))
    return torch.where(counts.sum(-1) > 0, entropy / most, 1.0) if counts.shape[-1] > 1 else torch.ones_like(entropy)


@contextmanager
def _outputs(model: torch.nn.Module) -> Iterator[list[TransformerOutput]]:
    """What the model's forward passes give within the context."""
    seen: list[TransformerOutput] = []
    handle = model.register_forward_hook(lambda module, arguments, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()
