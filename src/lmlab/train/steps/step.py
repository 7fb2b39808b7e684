"""Step functions, what they return, and its sum over micro-batches and processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from lmlab.data import Batch
from lmlab.distributed import sum_over_all


@dataclass(frozen=True)
class StepOutput:
    """What a step function returns.

    Attributes:
        loss_sum: the loss summed over what it is a mean of (tokens, pairs), with gradients.
        count: how many they are; the gradient of a step is that of total loss_sum / total count.
        sums: further sums to log as means, name -> (sum, count).
        learned: the step function has computed the gradient of the sum itself, piece by piece, so that it need not hold
            the whole graph.
    """

    loss_sum: Tensor
    count: Tensor
    sums: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    learned: bool = False


StepFunction = Callable[[Any, Batch], StepOutput]


@runtime_checkable
class FollowedStep(Protocol):
    """A step function that has something to do after each step of the optimizer, such as what depends on all its
    micro-batches.
    """

    def after_step(self, model: Any) -> Mapping[str, float]:
        """Further figures to log of the step."""
        ...


def after_step(step: StepFunction, model: Any) -> Mapping[str, float]:
    """What a step function does after each step of the optimizer, if anything; its figures."""
    return step.after_step(model) if isinstance(step, FollowedStep) else {}


class WrappedStep:
    """Base of every step function around another one: what follows a step of the optimizer reaches the inner one,
    whatever the outer one does.

    Subclasses extend `__call__`, and `close_step` in place of `after_step`.

    Arguments:
        step: the inner step function.
    """

    def __init__(self, step: StepFunction) -> None:
        self.step = step

    def __call__(self, model: Any, batch: Batch) -> StepOutput:
        """The loss of a micro-batch."""
        return self.step(model, batch)

    def close_step(self, model: Any) -> Mapping[str, float]:
        """What this one does after each step of the optimizer; further figures to log."""
        return {}

    @final
    def after_step(self, model: Any) -> Mapping[str, float]:
        """Close the step in the inner step function, then in this one; the figures of both."""
        return {**after_step(self.step, model), **self.close_step(model)}


Evaluation = Callable[[Any], dict[str, float]]


class StepSums:
    """What step functions return, added up over micro-batches and processes, with one transfer from the device
    a step.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._names = device, list[str]()
        self._values: Tensor | None = None
        self.stop = False

    def add(self, output: StepOutput) -> None:
        pairs = [(output.loss_sum, output.count), *output.sums.values()]
        wide = torch.float32 if self._device.type == "mps" else torch.float64  # Apple's GPUs have no double precision
        values = torch.stack(
            [torch.as_tensor(each, device=self._device).detach().to(wide) for pair in pairs for each in pair]
        )
        if self._values is None:
            self._names, self._values = list(output.sums), values
        else:
            assert list(output.sums) == self._names, "a step function must return the same sums for every micro-batch"
            self._values += values

    def gather(self, stop: bool) -> Tensor:
        """Add up over all processes, on the device: the count, a tensor of no dimensions. `stop` is whether this
        process wants to stop.
        """
        assert self._values is not None
        self._values = sum_over_all(torch.cat([self._values, self._values.new_tensor([float(stop)])]))
        return self._values[1]

    def total(self, norm: Tensor) -> tuple[float, float, float, dict[str, float]]:
        """After `gather`, the mean loss, the count, the gradients' norm, and the further means, in one transfer;
        `stop` is set if any process wants to stop.
        """
        assert self._values is not None
        *everything, stop, norm_ = torch.cat([self._values, norm.detach().to(self._values)[None]]).tolist()
        loss_sum, count, *rest = everything
        self.stop = stop > 0
        figures = {name: rest[2 * i] / rest[2 * i + 1] for i, name in enumerate(self._names) if rest[2 * i + 1]}
        return loss_sum / max(1.0, count), count, norm_, figures


def micro_batches(batch: Batch, rows: int) -> Iterator[Batch]:
    """The batch in parts of `rows` rows."""
    total = len(next(iter(batch.values())))
    for start in range(0, total, rows):
        yield {key: value[start : start + rows] for key, value in batch.items()}


def by_cost(batch: Batch) -> Batch:
    """The rows of a batch with the most attention first: by the sum of the squared lengths of their documents, as the
    training code of ProLong orders them (Gao et al. 2024).
    """
    documents_BT = batch.get("document_ids")
    if documents_BT is None or len(documents_BT) < 2:
        return batch
    order = torch.argsort(attention_cost(documents_BT), descending=True, stable=True)
    return {name: value[order] for name, value in batch.items()}


def attention_cost(document_ids_BT: Tensor) -> Tensor:
    """The sum of the squared lengths of each row's documents, [B]; padding costs nothing."""
    costs = [
        (torch.unique_consecutive(row[row >= 0], return_counts=True)[1].double() ** 2).sum() for row in document_ids_BT
    ]
    return torch.stack(costs)
