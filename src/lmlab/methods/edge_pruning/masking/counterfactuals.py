"""Examples as a masked model sees them: what it is compared with, and what takes the place of pruned edges, computed
once.

Shapes: B examples, T tokens, P positions, V tokens among which the model chooses, E edges.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from functools import cached_property

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.methods.edge_pruning.config import Ablation, Metric
from lmlab.methods.edge_pruning.examples.examples import NONE, Examples
from lmlab.methods.edge_pruning.examples.spans import aligned
from lmlab.methods.edge_pruning.masking.activations import Activations, capture, mean_of, nothing_like
from lmlab.methods.edge_pruning.masking.masked import Inputs, MaskedModel
from lmlab.methods.edge_pruning.masking.metrics import require_metric, values

_SAME = 1e-7  # a distance that rounding alone can give
_CACHE_BYTES = 4 * 2**30  # for what does not depend on the mask; beyond it that is computed again at each step


class Counterfactuals:
    """A task on a model.

    Arguments:
        masked: the model.
        examples: the task.
        ablation: what a pruned edge carries: the writer's output on the corrupted input (`interchange`), nothing
            (`zero`), its mean over all corrupted inputs and positions (`mean`), or a constant (`optimal`): its mean
            over all clean ones, until learned ones are put in its place (`with_constants`).
        batch_size: examples at once, where all are gone through.
        cache_bytes: keep the activations of all examples up to so much memory; beyond, they are computed again for each
            batch.

    Raises:
        UserError: clean and corrupted inputs differ in shape, or the corruption changes nothing.
    """

    def __init__(
        self,
        masked: MaskedModel,
        examples: Examples,
        ablation: Ablation = "interchange",
        batch_size: int = 16,
        cache_bytes: int = _CACHE_BYTES,
    ) -> None:
        if examples.clean.shape != examples.corrupted.shape:
            raise UserError(
                f"Clean inputs have the shape {tuple(examples.clean.shape)}, corrupted ones"
                f" {tuple(examples.corrupted.shape)}."
            )
        examples = aligned(examples, masked.graph.spans, masked.graph.options.positions)
        self.masked, self.examples, self.ablation, self.batch_size = masked, examples, ablation, batch_size
        self.metric: Metric = "distance"
        self.device = masked.model.embedding.weight.device
        vocab = masked.graph.config.vocab_size
        if int(max(examples.clean.max(), examples.corrupted.max())) >= vocab:
            raise UserError(
                f"The examples hold tokens beyond the model's vocabulary of {vocab:,}.",
                "Make them with the tokenizer of this model.",
            )
        answers = [examples.answers, examples.distractors, torch.tensor(examples.answer_ids or [0])]
        if int(max(each.max() for each in answers)) >= vocab or int(min(each.min() for each in answers)) < NONE:
            raise UserError(f"The examples have answers beyond the model's vocabulary of {vocab:,}.")
        config, length = masked.graph.config, examples.clean.shape[1]
        if config.positions == "learned" and length > config.max_seq_len:
            raise UserError(
                f"The longest prompt has {length:,} tokens; the model's table of positions has {config.max_seq_len:,}.",
                "Shorten the prompts.",
            )
        first = self._compute(torch.arange(min(batch_size, len(examples))))
        self._fixed: Activations | None = None
        if ablation == "zero":
            self._fixed = nothing_like(first[0])
        elif ablation in ("mean", "optimal"):
            tokens = examples.corrupted if ablation == "mean" else examples.clean
            parts = [
                capture(masked.model, masked.graph, tokens[index].to(self.device), self._real(index))
                for index in self.batches()
            ]
            self._fixed = mean_of(Activations.concatenate(parts), examples.real.to(self.device))
        size = (
            (first[0].num_bytes + first[2].numel() * first[2].itemsize) / min(batch_size, len(examples)) * len(examples)
        )
        self._cached = None
        if size <= cache_bytes:
            parts_ = [self._compute(index) for index in self.batches()]
            replaced = Activations.concatenate([part[0] for part in parts_])
            scales = tuple(torch.cat(each) for each in zip(*(part[1] for part in parts_), strict=True))
            self._cached = (replaced, scales, torch.cat([part[2] for part in parts_]))

    @torch.no_grad()
    def _compute(self, index_B: Tensor) -> tuple[Activations, tuple[Tensor, ...], Tensor]:
        """What takes the place of pruned edges, the scales of the clean run, and the outputs of the whole model."""
        masked, examples = self.masked, self.examples
        clean, corrupted = examples.clean[index_B].to(self.device), examples.corrupted[index_B].to(self.device)
        real = self._real(index_B)
        seen = capture(masked.model, masked.graph, clean, real)
        replaced = capture(masked.model, masked.graph, corrupted, real)
        last_BTD = seen.streams[-1]
        index = examples.positions[index_B].to(self.device)[..., None].expand(-1, -1, last_BTD.shape[-1])
        return replaced, seen.scales, self.outputs(masked.model.read_out(last_BTD.gather(1, index)))

    def outputs(self, logits_BPV: Tensor) -> Tensor:
        """Log-probabilities among the answers, or for `mse` the outputs themselves, [B, P, V]."""
        chosen = logits_BPV if self.examples.answer_ids is None else logits_BPV[..., list(self.examples.answer_ids)]
        return chosen if self.examples.distance == "mse" else chosen.log_softmax(-1)

    def _parts(self, index_B: Tensor) -> tuple[Activations, tuple[Tensor, ...], Tensor]:
        if self._cached is None:
            replaced, scales, full = self._compute(index_B)
        else:
            place = index_B.to(self.device)
            replaced, scales, full = (
                self._cached[0].rows(place),
                tuple(each[place] for each in self._cached[1]),
                self._cached[2][place],
            )
        return self._fixed or replaced, scales, full

    def full(self, index_B: Tensor) -> Tensor:
        """What the whole model gives, as `outputs`."""
        return self._parts(index_B)[2]

    def inputs(self, index_B: Tensor) -> Inputs:
        """The examples of these numbers, for masked passes."""
        replaced, scales, _ = self._parts(index_B)
        return Inputs(
            self.examples.clean[index_B].to(self.device),
            replaced,
            scales,
            self.examples.positions[index_B].to(self.device),
            self._real(index_B),
            self._spans(index_B),
        )

    def _spans(self, index_B: Tensor) -> Tensor | None:
        """The span of each token, where the graph tells them apart."""
        if self.masked.graph.spans is None:
            return None
        assert self.examples.spans is not None
        return self.examples.spans[index_B].to(self.device)

    def _real(self, index_B: Tensor) -> Tensor | None:
        """False for padding that must be hidden: on the right, a causal network does not see it anyway."""
        if self.masked.graph.config.causal or self.examples.lengths is None:
            return None
        real_BT = self.examples.real[index_B].to(self.device)
        return None if bool(real_BT.all()) else real_BT

    def distance(self, logits_BPV: Tensor, index_B: Tensor) -> Tensor:
        """How far a circuit's outputs are from the whole model's: KL in nats, or the squared error, a mean over
        positions, [B].
        """
        ours, full = self.outputs(logits_BPV), self.full(index_B)
        if self.examples.distance == "mse":
            each_BP = (ours - full).square().mean(-1)
        else:
            each_BP = torch.nn.functional.kl_div(ours, full, reduction="none", log_target=True).sum(-1)
        weights_BP = self.examples.weights[index_B].to(each_BP)
        return (each_BP * weights_BP).sum(1) / weights_BP.sum(1)

    def by(self, metric: Metric) -> Counterfactuals:
        """The same task for searches that go by another metric; what was computed is shared.

        Raises:
            UserError: the examples do not have it.
        """
        require_metric(self, metric)
        other = copy(self)
        other.metric = metric
        other.__dict__.pop("empty_distance", None)  # that of the metric
        return other

    def on(self, examples: Examples) -> Counterfactuals:
        """The same on other examples."""
        other = Counterfactuals(self.masked, examples, self.ablation, self.batch_size)
        if self.ablation in ("mean", "optimal") and self._fixed is not None:
            other = other.with_constants(self._fixed)
        other.metric = self.metric
        return other

    @property
    def constants(self) -> Activations | None:
        """What takes the place of pruned edges for all examples alike, if it does."""
        return self._fixed

    def with_constants(self, constants: Activations) -> Counterfactuals:
        """The same task with other constants in the place of pruned edges."""
        other = copy(self)
        other._fixed = constants
        other.__dict__.pop("empty_distance", None)
        return other

    def gap(self, logits_BPV: Tensor, index_B: Tensor) -> Tensor:
        """What searches make small, [B]: the distance, or how far the metric that they go by is from the whole
        model's.
        """
        if self.metric == "distance":
            return self.distance(logits_BPV, index_B)
        ours_B = values(self, self.outputs(logits_BPV), index_B, self.metric)
        return (ours_B - values(self, self.full(index_B), index_B, self.metric)).abs()

    def batches(self, size: int | None = None) -> Iterator[Tensor]:
        """The numbers of all examples in batches."""
        yield from torch.arange(len(self.examples)).split(size or self.batch_size)

    @torch.no_grad()
    def run(self, z_E: Tensor, neurons_WD: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers and logits of all examples under one set of masks of edges, [E], and of neurons."""
        for index_B in self.batches():
            yield index_B, self.masked(self.inputs(index_B), z_E[None].to(self.device), neurons_WD=neurons_WD)

    def mean_distance(self, z_E: Tensor) -> float:
        """The mean distance (or gap) of a circuit over all examples."""
        return float(torch.cat([self.gap(logits, index) for index, logits in self.run(z_E.float())]).mean())

    @cached_property
    def empty_distance(self) -> float:
        """That of the circuit without edges.

        Raises:
            UserError: it is 0.
        """
        found = self.mean_distance(torch.zeros(self.masked.graph.num_edges))
        require_change(found, "distance" if self.metric == "distance" else f"gap in {self.metric}")
        return found


def require_change(empty: float, what: str = "distance") -> None:
    """See that it matters which inputs the model reads.

    Arguments:
        empty: how far the circuit without edges is from the whole model, by `what`.

    Raises:
        UserError: it is 0, but for rounding.
    """
    if not empty > _SAME:
        raise UserError(
            f"The corrupted inputs do not change the output (the empty circuit's {what} is {empty:.1e}).",
            "Corrupt what the answer depends on, or use another ablation.",
        )
