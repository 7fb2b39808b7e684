"""The constrained network (Friedman et al. 2023, section 3), with many seeds as one computation.

- Streams grow by concatenation: categorical variables are points of a simplex, numerical ones are numbers.
- A head reads its key, query and value each from one variable, chosen by a gate; its predicate says which key a query
  looks for. An MLP reads two variables.
- Every choice is made by one sampler; with the arg max the network is a program.

Shapes: S seeds, B sequences, N places, V categorical and U numerical variables, D values of a category (`d_var`), H
heads, M MLPs, I inputs of an MLP, F hidden units of an MLP, C labels. Streams have the variables before the sequences,
(S, V, B, N, D), so that a read is one product of gates and stream, and concatenation is along one axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmlab.methods.transformer_programs.network.nearest import nearest
from lmlab.methods.transformer_programs.network.predicates import Predicates
from lmlab.methods.transformer_programs.network.sampling import HARD, QUIET, Sampler, one_hot, straight_through
from lmlab.methods.transformer_programs.network.spec import NetworkSpec

_NO_MATCH = 1e-20  # log of it is the score of a place that does not match; float32 only
_NEVER = -1e30  # its softmax is exactly 0; infinity would give NaN where nothing is left
_SHARP = 1e-10  # of the default to the first place, as in the reference


@dataclass(frozen=True)
class Attention:
    """How categorical heads attend in training; all kinds are the same program.

    Attributes:
        kind: `softmax` over the logarithms of scores, as in the paper; or `nearest`: the chance that each place is the
            nearest match, which neither noise nor temperature nor default change.
        noise: sample the places too, as in the paper; else a softmax at the temperature, without noise. Where the
            forward pass is a program's (`HARD`), there is none.
        default: how a head without a match falls back on the first place: `sharp` as in the reference, or `smooth`: as
            much as the matches leave of 1.
    """

    noise: bool = True
    default: str = "sharp"
    kind: str = "softmax"


class SeededParameters(nn.Module):
    """Helps to make parameters that are drawn for each seed by its own generator."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self._generators = generators

    def normal(self, *shape: int, std: float) -> nn.Parameter:
        """(S, *shape) of a normal distribution."""
        drawn = [torch.randn(shape, generator=generator) * std for generator in self._generators]
        return nn.Parameter(torch.stack(drawn))

    def zeros(self, *shape: int) -> nn.Parameter:
        """(S, *shape) of zeros."""
        return nn.Parameter(torch.zeros(len(self._generators), *shape))


class Mlps(SeededParameters):
    """The MLPs of one kind in one layer: each reads some variables, and gives a category.

    Arguments:
        width: of a variable: D, or 1 for numbers.
    """

    def __init__(
        self, spec: NetworkSpec, count: int, variables: int, width: int, generators: Sequence[torch.Generator]
    ) -> None:
        super().__init__(generators)
        inputs, hidden, values = spec.mlp_vars_in, spec.d_mlp, spec.d_var
        self.count, self.width = count, width
        self.read = self.normal(count, inputs, variables, std=variables**-0.5)
        self.w_in = self.normal(count, inputs * width, hidden, std=hidden**-0.5)
        self.b_in = self.zeros(count, hidden)
        self.w_out = self.normal(count, hidden, values, std=values**-0.5)
        self.b_out = self.zeros(count, values)

    def forward(self, stream: Tensor, sample: Sampler, forbidden: Tensor | None) -> Tensor:
        """(S, M, B, N, D) from a stream (S, V, B, N, width)."""
        seeds, count, inputs, _ = self.read.shape
        gates = sample(_without(self.read, forbidden))
        batch, places = stream.shape[2:4]
        read = torch.bmm(gates.flatten(1, 2), stream.flatten(2))
        read = read.view(seeds, count, inputs, batch * places, self.width).transpose(2, 3)
        logits = self.table(read.reshape(seeds * count, batch * places, inputs * self.width))
        if sample.kind in QUIET:
            # as in the paper; else it is left out: under noise weights are the same but for rounding, and an arg max
            # would not be, for rounding makes ties of logits that a table tells apart
            logits = torch.log_softmax(logits, -1)
        return sample(logits).view(seeds, count, batch, places, -1)

    def table(self, read: Tensor) -> Tensor:
        """Logits of results (S, M, rows, D) of inputs (S * M, rows, I * width)."""
        seeds, count = self.read.shape[:2]
        hidden = torch.baddbmm(self.b_in.flatten(0, 1)[:, None], read, self.w_in.flatten(0, 1)).relu()
        found = torch.baddbmm(self.b_out.flatten(0, 1)[:, None], hidden, self.w_out.flatten(0, 1))
        return found.view(seeds, count, read.shape[1], -1)


class Block(SeededParameters):
    """One layer: heads that read the streams before it, then MLPs that also read its heads."""

    def __init__(self, spec: NetworkSpec, layer: int, generators: Sequence[torch.Generator]) -> None:
        super().__init__(generators)
        cats, nums = len(spec.cat_names(layer)), len(spec.num_names(layer))
        self.spec = spec
        self.cat_heads, self.num_heads = spec.cat_heads, spec.num_heads
        heads = spec.cat_heads + spec.num_heads
        if heads:
            self.key = self.normal(heads, cats, std=cats**-0.5)
            self.query = self.normal(heads, cats, std=cats**-0.5)
            self.predicates = Predicates(spec, generators)
        if spec.cat_heads:
            self.value = self.normal(spec.cat_heads, cats, std=cats**-0.5)
            if spec.position_bias == "clipped":
                self.bias = self.zeros(spec.cat_heads, 2 * spec.context)
        if spec.num_heads:
            self.num_value = self.normal(spec.num_heads, nums, std=nums**-0.5)
        if spec.cat_mlps:
            self.cat_mlp = Mlps(spec, spec.cat_mlps, cats + spec.cat_heads, spec.d_var, generators)
        if spec.num_mlps:
            self.num_mlp = Mlps(spec, spec.num_mlps, nums + spec.num_heads, 1, generators)

    def forward(
        self, cat: Tensor, num: Tensor, mask: Tensor, bias: Tensor, sample: Sampler, attention: Attention
    ) -> tuple[Tensor, Tensor]:
        """The streams with this layer's variables.

        Arguments:
            cat: (S, V, B, N, D); num: (S, U, B, N, 1).
            mask: (B, N, N): which places (last axis) each place sees.
            bias: (N, N) or (S, H, N, N): of near places.
        """
        forbidden = self._forbidden(cat.shape[1])
        new_num = None
        if self.cat_heads + self.num_heads:
            new_cat, new_num = self._heads(cat, num, mask, bias, sample, attention, forbidden)
            if new_cat is not None:
                cat = torch.cat([cat, new_cat], 1)
            if new_num is not None:
                num = torch.cat([num, new_num], 1)
        outputs = []
        if self.spec.cat_mlps:
            outputs.append(self.cat_mlp(cat, sample, self._forbidden(cat.shape[1])))
        if self.spec.num_mlps:
            outputs.append(self.num_mlp(num, sample, None))
        return (torch.cat([cat, *outputs], 1) if outputs else cat), num

    def _forbidden(self, variables: int) -> Tensor | None:
        if not self.spec.forbid_positions:
            return None
        return torch.arange(variables) == self.spec.cat_inputs.index("positions")

    def gates(self, sample: Sampler, forbidden: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """What heads read: keys and queries (S, H, V), values of categorical heads."""
        value = sample(_without(self.value, forbidden)) if self.cat_heads else None
        return sample(_without(self.key, forbidden)), sample(_without(self.query, forbidden)), value

    def num_gates(self, sample: Sampler) -> Tensor:
        """The numerical variable that each counting head sums (S, H, U)."""
        if self.spec.selector_width:
            return torch.zeros_like(self.num_value).index_fill(-1, torch.tensor(0, device=self.num_value.device), 1.0)
        return sample(self.num_value)

    def _heads(
        self, cat: Tensor, num: Tensor, mask: Tensor, bias: Tensor, sample: Sampler, attention: Attention,
        forbidden: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        seeds, _, batch, places, width = cat.shape
        heads = self.cat_heads + self.num_heads
        key, query, value = self.gates(sample, forbidden)
        gates = torch.cat([key, query] if value is None else [key, query, value], 1)
        read = torch.bmm(gates, cat.flatten(2)).view(seeds, -1, batch, places, width)
        # split, not slices, whose gradients would each be padded with zeros to the whole
        key_read, query_read, value_read = read.split([heads, heads, self.cat_heads if self.cat_heads else 0], 1)
        wanted = torch.matmul(query_read.flatten(2, 3), self.predicates(sample))
        wanted = wanted.view(seeds, heads, batch, places, width)
        scores = torch.matmul(wanted, key_read.transpose(-1, -2)) * mask  # (S, H, B, N, N)
        cat_scores, num_scores = scores.split([self.cat_heads, self.num_heads], 1)
        new_cat = new_num = None
        if self.cat_heads:
            weights = self._closest(cat_scores, mask, bias, sample, attention)
            new_cat = torch.matmul(weights, value_read)
        if self.num_heads:
            if self.spec.causal_num_heads:
                lower = torch.ones(self.num_heads, 1, places, places, device=mask.device)
                lower[: self.spec.causal_num_heads].tril_()
                num_scores = num_scores * lower
            summed = torch.bmm(self.num_gates(sample), num.flatten(2)).view(seeds, -1, batch, places, 1)
            new_num = torch.matmul(num_scores, summed)
        return new_cat, new_num

    def _closest(self, scores: Tensor, mask: Tensor, bias: Tensor, sample: Sampler, attention: Attention) -> Tensor:
        """Attention weights (S, H, B, N, N) of the nearest match; of the first place where nothing matches."""
        if attention.kind == "nearest" and sample.kind != "argmax":
            return nearest(scores)
        matches = scores.sum(-1)
        # where the forward pass is a program's, both are the same, but only one has a gradient that is bounded
        sharp = attention.default == "sharp" and sample.kind not in HARD
        taken = matches / (matches + _SHARP) if sharp else matches
        left = (1.0 - taken).relu()
        first = torch.zeros(scores.shape[-1], device=scores.device)
        first[0] = 1.0
        scores = torch.addcmul(scores, left[..., None], first)
        if self.spec.position_bias == "none":
            # the reference multiplies by a softmax over equal biases
            logits = (scores / scores.shape[-1] + _SHARP).log()
        elif sample.kind in HARD:
            return self._closest_of_choices(scores, mask, bias, sample)
        else:
            logits = (scores + _NO_MATCH).log() + bias
        logits = logits.masked_fill(~mask, _NEVER)
        if attention.noise:
            return sample(logits / math.sqrt(self.spec.d_var))
        if sample.kind == "argmax":
            return sample(logits)
        return torch.softmax(logits / sample.tau, -1)

    def _closest_of_choices(self, scores: Tensor, mask: Tensor, bias: Tensor, sample: Sampler) -> Tensor:
        """The same where the forward pass is a program's: scores are 0 or 1, and one place is taken. Backward, a
        place's weight is in proportion to its score, whose gradient is bounded: that of log(s + 1e-20) is not at 0.
        """
        near = (bias / sample.tau).expand_as(scores).masked_fill(~mask, _NEVER)
        best = near.masked_fill(scores.detach() <= 0, _NEVER).amax(-1, keepdim=True)
        # relative to the best match, and no more than it for places that do not match, so that the sum is at least 1
        soft = scores * (near - best).clamp(max=0.0).exp()
        soft = soft / soft.sum(-1, keepdim=True).clamp(min=_SHARP)
        chosen = one_hot(((scores + _NO_MATCH).log() + bias).masked_fill(~mask, _NEVER))
        return straight_through(chosen, soft)


class ProgramTransformer(nn.Module):
    """A network whose arg max is a program, for several seeds.

    Arguments:
        seeds: each has weights and noise of its own, the same alone as among others.
        attention: how heads attend in training.
        embedding_logits: where the categories of words begin: (vocabulary, embedding_vars * d_var).

    """

    def __init__(
        self,
        spec: NetworkSpec,
        seeds: Sequence[int] = (0,),
        attention: Attention = Attention(),
        embedding_logits: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.seeds, self.attention = spec, tuple(seeds), attention
        generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        make = SeededParameters(generators)
        words, width = len(spec.vocabulary), spec.embedding_vars * spec.d_var
        if spec.embedding_vars:
            self.embedding = make.normal(words, spec.embedding_vars, spec.d_var, std=width**-0.5)
            if embedding_logits is not None:
                drawn = embedding_logits.reshape(words, spec.embedding_vars, spec.d_var)
                self.embedding.data = drawn.expand_as(self.embedding).clone()
        if spec.learned_numbers:
            self.numbers = make.normal(words, spec.num_vars, std=spec.num_vars**-0.5)
        self.blocks = nn.ModuleList(Block(spec, layer, generators) for layer in range(spec.num_layers))
        rows = len(spec.cat_names(spec.num_layers)) * spec.d_var + len(spec.num_names(spec.num_layers))
        self.unembed = make.normal(rows, len(spec.labels), std=len(spec.labels) ** -0.5)

    def forward(self, tokens: Tensor, sample: Sampler) -> Tensor:
        """Logits (S, B, N, C) of tokens (B, N), whose padding is 0; (S, B, C) with `pool_outputs`."""
        cat, num = self.streams(tokens, sample)
        return self.classify(tokens, cat, num)

    def streams(self, tokens: Tensor, sample: Sampler) -> tuple[Tensor, Tensor]:
        """All variables: (S, V, B, N, D) and (S, U, B, N, 1)."""
        valid = tokens != 0
        mask = valid[:, None, :] & valid[:, :, None]
        if self.spec.autoregressive:
            mask = mask.tril()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not sample.frozen):
            cat, num = self._inputs(tokens, mask, sample.for_layer(0))
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            bias = nearness(self.spec.context, tokens.shape[1], tokens.device)
            if self.spec.position_bias == "clipped" and self.spec.cat_heads:
                bias = _clipped(block.bias, self.spec.context, tokens.shape[1])
            with torch.set_grad_enabled(torch.is_grad_enabled() and number >= sample.frozen):
                cat, num = block(cat, num, mask, bias, sample.for_layer(number), self.attention)
        return cat, num

    def classify(self, tokens: Tensor, cat: Tensor, num: Tensor) -> Tensor:
        """Logits from all variables (section 3.4)."""
        seeds, variables, batch, places, width = cat.shape
        cat_rows = cat.permute(0, 2, 3, 1, 4).reshape(seeds, batch * places, variables * width)
        num_rows = num[..., 0].permute(0, 2, 3, 1).reshape(seeds, batch * places, -1)
        streams = torch.cat([cat_rows, num_rows], -1)
        if self.spec.pool_outputs:
            valid = (tokens != 0).to(streams.dtype)
            count = valid.sum(1, keepdim=True).clamp(min=1) if self.spec.pool_over == "tokens" else places
            pooled = streams.view(seeds, batch, places, -1) * (valid / count)[..., None]
            streams = pooled.sum(2)
        weights: Tensor = self.unembed
        if self.spec.forbid_positions:
            first = self.spec.cat_inputs.index("positions") * width
            rows = torch.arange(weights.shape[1], device=weights.device)
            weights = weights.masked_fill(((rows >= first) & (rows < first + width))[:, None], 0.0)
        logits = torch.bmm(streams, weights)
        if self.spec.masked_labels:
            masked = torch.tensor(
                [label in self.spec.masked_labels for label in self.spec.labels], device=logits.device
            )
            logits = logits.masked_fill(masked, _NEVER)
        shape = (seeds, batch) if self.spec.pool_outputs else (seeds, batch, places)
        return logits.view(*shape, -1)

    def _inputs(self, tokens: Tensor, mask: Tensor, sample: Sampler) -> tuple[Tensor, Tensor]:
        spec, seeds = self.spec, len(self.seeds)
        batch, places = tokens.shape
        position = nn.functional.one_hot(
            torch.arange(places, device=tokens.device).clamp(max=spec.d_var - 1), spec.d_var
        ).to(self.unembed.dtype)
        if spec.embedding_vars:
            table = sample(self.embedding)  # (S, words, variables, D)
            words = table.flatten(2)[:, tokens].view(seeds, batch, places, spec.embedding_vars, spec.d_var)
            first = words.permute(0, 3, 1, 2, 4)
        else:
            exact = torch.eye(spec.d_var, device=tokens.device, dtype=self.unembed.dtype)
            table = (
                # logits of 10 and -10: the right word in nearly every draw
                sample((20 * exact - 10).expand(seeds, -1, -1)) if spec.sampled_tokens else exact.expand(seeds, -1, -1)
            )
            first = table[:, tokens][:, None]
        cat = torch.cat([first, position.expand(seeds, 1, batch, places, spec.d_var)], 1)
        if spec.learned_numbers:
            num = self.numbers[:, tokens].permute(0, 3, 1, 2)[..., None]
        else:
            num = torch.ones(seeds, spec.num_vars, batch, places, 1, device=tokens.device, dtype=cat.dtype)
        if spec.prefix_count:
            same = (tokens[:, :, None] == tokens[:, None, :]) & mask
            count = same.tril().sum(-1).to(cat.dtype)
            num = torch.cat([num, count.expand(seeds, 1, -1, -1)[..., None]], 1)
        return cat, num


def nearness(context: int, places: int, device: torch.device) -> Tensor:
    """(N, N): the fixed bias by which near places go before far ones, the left one of two goes first, and the own place
    last.
    """
    offset = torch.arange(places, device=device)[None, :] - torch.arange(places, device=device)[:, None]
    away = (offset.abs() - 1).to(torch.float32)
    context = max(context, places)
    to_right, to_left = max(1, context - 2), max(1, context - 1)
    bias = torch.where(offset > 0, -away / to_right, -away / to_left)
    return bias.masked_fill(offset == 0, -2.0)


def _clipped(bias: Tensor, context: int, places: int) -> Tensor:
    """(S, H, 1, N, N): learned biases by offset, within 10 of 0."""
    offset = torch.arange(places)[None, :] - torch.arange(places)[:, None]
    return bias.clamp(-10.0, 10.0)[:, :, offset % (2 * context)][:, :, None]


def _without(logits: Tensor, forbidden: Tensor | None) -> Tensor:
    return logits if forbidden is None else logits.masked_fill(forbidden.to(logits.device), _NEVER)
