"""A small language model as paths, and which of them its answers need (after D-RASP, arXiv 2602.08857).

With constants in place of the norms' scales, everything before a softmax or an activation is linear: what a part reads
is a sum over the paths by which tokens and positions have come there, and a head's score a sum over pairs of paths.
Gates on these paths, these products and the neurons are trained, with a constant beside each, for the model's own
answers and for few open gates.

Shapes: B sequences, T places, D model width, H width of a head, F neurons, P paths, C answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmlab.errors import UserError
from lmlab.methods.transformer_programs.decompile.form import ONE, POSITION, TOKEN, Form, Head, Map, Neurons
from lmlab.models import Transformer
from lmlab.models.block import Block
from lmlab.models.internals.gates import probability_open, sample
from lmlab.models.internals.surgery import HeadMaps, head_maps
from lmlab.models.internals.taps import Recorder
from lmlab.models.layers.feed_forward import ACTIVATIONS, FeedForward
from lmlab.models.layers.norm import linear_norm

_OPEN = 2.0  # log-alpha at the start: open nine times of ten
_NEURON = 0.25  # what an open neuron costs of an open path
_MOST_PATHS = 4000


def check(model: Transformer) -> None:
    """See that a model can be written out as paths.

    Raises:
        UserError: it cannot; says what its configuration would have to be.
    """
    config = model.config
    wanted = {
        "norm_position": ("pre",), "positions": ("learned", "none"), "qk_norm": ("none",), "causal": (True,),
        "gated": (False,), "parallel_residual": (False,), "embedding_norm": (False,), "lm_head": (True,),
        "attention_soft_cap": (None,), "logit_soft_cap": (None,), "clip_qkv": (None,), "token_types": (0,),
    }  # fmt: skip
    for name, allowed in wanted.items():
        if (value := getattr(config, name)) not in allowed:
            shown = " or ".join(str(each) for each in allowed)
            raise UserError(f"The model has {name}: {value}; it can be decompiled with {name}: {shown}.")
    if set(config.ffn_kinds) != {"dense"} or set(config.attention_kinds) != {"full"}:
        raise UserError("Models with mixtures of experts or sliding windows are not decompiled.")
    paths = 2
    for _ in range(config.num_layers):
        paths += config.num_heads * paths + 1
    if paths > _MOST_PATHS:
        layers, heads = config.num_layers, config.num_heads
        raise UserError(
            f"{layers} layers of {heads} heads are {paths:,} paths; more than {_MOST_PATHS:,} cannot be read.",
            "Decompile a model of fewer layers or heads.",
        )


def _scale(x: Tensor, norm: nn.Module, real: Tensor) -> float:
    """The mean of one over what a norm divides by."""
    if isinstance(norm, nn.Identity):
        return 1.0
    assert isinstance(norm, nn.LayerNorm | nn.RMSNorm)
    x = x - x.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else x
    return float((x.square().mean(-1) + (norm.eps or 0.0)).rsqrt()[real].mean())


@dataclass(frozen=True)
class _Layer:
    read_DD: Tensor
    read_D: Tensor
    heads: list[HeadMaps]
    attention_bias_D: Tensor
    ffn_read_DD: Tensor
    ffn_read_D: Tensor
    up_DF: Tensor
    up_F: Tensor
    down_FD: Tensor
    down_D: Tensor


class _Gates(nn.Module):
    """Gates of one kind with a constant each, [...]."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.full(shape, _OPEN))
        self.constant = nn.Parameter(torch.ones(shape))

    def forward(self, noisy: bool) -> Tensor:
        gate = sample(self.log_alpha, torch.rand_like(self.log_alpha)) if noisy else (self.log_alpha > 0).float()
        return gate * self.constant

    def open(self) -> Tensor:
        """The expected number of open gates."""
        return probability_open(self.log_alpha).sum()


class Paths(nn.Module):
    """The model as paths.

    Arguments:
        token_ids: those of the vocabulary that occur.
        label_ids: the answers.
        ids_BT, positions_BT, real_BT: sequences on which the norms' scales are measured, and which places are no
            padding.
    """

    def __init__(
        self, model: Transformer, token_ids: Sequence[int], label_ids: Sequence[int], ids_BT: Tensor,
        positions_BT: Tensor, real_BT: Tensor,
    ) -> None:  # fmt: skip
        super().__init__()
        config = model.config
        self.activation, self.num_layers = config.activation, config.num_layers
        width, self.multiplier = config.d_model, config.residual_multiplier
        names = [f"blocks.{layer}.{tap}" for layer in range(config.num_layers) for tap in ("input", "middle", "output")]
        seen = Recorder(*names)
        with torch.no_grad():
            model(ids_BT, position_ids_BT=positions_BT, taps=seen)
            self.token_VD = model.embed(torch.tensor([list(token_ids)]))[0].float()
        self.position_PD = None
        if model.position_embedding is not None:
            self.position_PD = model.position_embedding.weight[config.position_offset :].detach().float()
        self.layers: list[_Layer] = []
        for layer in range(config.num_layers):
            block = model.block(layer)
            first = _scale(seen[f"blocks.{layer}.input"], block.attention_norm, real_BT)
            second = _scale(seen[f"blocks.{layer}.middle"], block.norm_of_ffn, real_BT)
            self.layers.append(_layer(block, width, first, second))
        norm = model.final_norm or nn.Identity()
        last = _scale(seen[f"blocks.{config.num_layers - 1}.output"], norm, real_BT)
        out_DD, out_D = linear_norm(norm, width, last)
        head_DC = model.head_weight_VD.detach().float()[list(label_ids)].T * config.logit_scale
        bias = model.head_bias_V
        self.out_DC, self.out_C = out_DD @ head_DC, out_D @ head_DC
        if bias is not None:
            self.out_C = self.out_C + bias.detach().float()[list(label_ids)] * config.logit_scale
        self._name()

    def _name(self) -> None:
        """The paths that each part reads, and their gates."""
        paths = [TOKEN, *([POSITION] if self.position_PD is not None else [])]
        self.reads: list[tuple[list[str], list[str]]] = []
        self.products, self.neuron_reads, self.neurons = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        heads = 0
        for each in self.layers:
            before = list(paths)
            for _ in each.heads:
                paths += [f"a{heads}({name})" for name in before]
                heads += 1
            self.products.append(_Gates(len(each.heads), 1 + len(before), len(before)))
            self.reads.append((before, list(paths)))
            self.neuron_reads.append(_Gates(len(paths)))
            self.neurons.append(_Gates(each.up_DF.shape[1]))
            paths.append(f"m{len(self.reads) - 1}")
        self.paths = paths
        self.answer = _Gates(len(paths))
        self.bias_C = nn.Parameter(torch.zeros(self.out_DC.shape[1]))
        self.bias_F = nn.ParameterList(nn.Parameter(torch.zeros(each.up_DF.shape[1])) for each in self.layers)

    def cost(self) -> Tensor:
        """The expected number of open gates, neurons for less."""
        paths = [each.open() for each in (*self.products, *self.neuron_reads, self.answer)]
        neurons = [each.open() for each in self.neurons]  # type: ignore[operator]
        return torch.stack(paths).sum() + _NEURON * torch.stack(neurons).sum()

    def forward(self, tokens_BT: Tensor, positions_BT: Tensor, noisy: bool = True) -> Tensor:
        """The scores of the answers, [B, T, C]; tokens by their number among those that occur."""
        length = tokens_BT.shape[1]
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        carried = [self.token_VD[tokens_BT]]
        if self.position_PD is not None:
            carried.append(self.position_PD[positions_BT])
        always_D = torch.zeros(self.token_VD.shape[1])
        for number, each in enumerate(self.layers):
            x_BTPD = torch.stack(carried, 2)
            gates_NQK = self.products[number](noisy)
            for head, maps in enumerate(each.heads):
                query_BTPH = x_BTPD @ (each.read_DD @ maps.query_DH)
                one_H = (always_D @ each.read_DD + each.read_D) @ maps.query_DH + maps.query_H
                query_BTPH = torch.cat([one_H.expand_as(query_BTPH[:, :, :1]), query_BTPH], 2)
                key_BTPH = x_BTPD @ (each.read_DD @ maps.key_DH)
                keys = torch.einsum("qk,bskh->bsqh", gates_NQK[head], key_BTPH)
                scores_BTS = query_BTPH.flatten(2) @ keys.flatten(2).transpose(1, 2)
                weights_BTS = scores_BTS.masked_fill(later, float("-inf")).softmax(-1)
                value_BTPH = x_BTPD @ (each.read_DD @ maps.value_DH)
                gathered = (weights_BTS @ value_BTPH.flatten(2)).unflatten(2, value_BTPH.shape[2:])
                written_BTPD = gathered @ maps.output_HD * self.multiplier
                carried += written_BTPD.unbind(2)
            always_D = always_D + self._always(each, always_D)
            x_BTPD = torch.stack(carried, 2)
            read_BTD = torch.einsum("p,btpd->btd", self.neuron_reads[number](noisy), x_BTPD)
            inner = read_BTD @ (each.ffn_read_DD @ each.up_DF) + self._inner_bias(number, always_D)
            hidden_BTF = ACTIVATIONS[self.activation](inner) * self.neurons[number](noisy)
            carried.append(hidden_BTF @ each.down_FD * self.multiplier)
            always_D = always_D + each.down_D * self.multiplier
        read_BTD = torch.einsum("p,btpd->btd", self.answer(noisy), torch.stack(carried, 2))
        return read_BTD @ self.out_DC + self._answer_bias(always_D)

    def _always(self, each: _Layer, always_D: Tensor) -> Tensor:
        """What the attention of a layer adds whatever it attends to."""
        read_D = always_D @ each.read_DD + each.read_D
        written = [(read_D @ maps.value_DH + maps.value_H) @ maps.output_HD for maps in each.heads]
        return (torch.stack(written).sum(0) + each.attention_bias_D) * self.multiplier

    def _inner_bias(self, number: int, always_D: Tensor) -> Tensor:
        each = self.layers[number]
        return (always_D @ each.ffn_read_DD + each.ffn_read_D) @ each.up_DF + each.up_F + self.bias_F[number]

    def _answer_bias(self, always_D: Tensor) -> Tensor:
        return always_D @ self.out_DC + self.out_C + self.bias_C

    @torch.no_grad()
    def form(self, tokens: Sequence[str], labels: Sequence[str]) -> Form:
        """The open paths as tables from one-hot values, with their constants."""
        places = 0 if self.position_PD is None else len(self.position_PD)
        written = {TOKEN: self.token_VD}
        if self.position_PD is not None:
            written[POSITION] = self.position_PD
        form = Form(tuple(tokens), places, tuple(labels), [], {}, self.activation, {})
        always_D, heads = torch.zeros(self.token_VD.shape[1]), 0
        for number, each in enumerate(self.layers):
            before = dict(written)
            gates_NQK = self.products[number](False)
            for head, maps in enumerate(each.heads):
                part = Head(f"a{heads}", number)
                query = {name: rows @ each.read_DD @ maps.query_DH for name, rows in before.items()}
                one_H = (always_D @ each.read_DD + each.read_D) @ maps.query_DH + maps.query_H
                query = {ONE: one_H[None], **query}
                for q, (asks, rows) in enumerate(query.items()):
                    for k, (name, theirs) in enumerate(before.items()):
                        if gates_NQK[head, q, k] != 0 and len(rows) and len(theirs):
                            table = rows @ (theirs @ each.read_DD @ maps.key_DH).T * gates_NQK[head, q, k]
                            part.products[asks, name] = Map(form.values(asks), form.values(name), table)
                form.parts.append(part)
                for name, rows in before.items():
                    moved = rows @ each.read_DD @ maps.value_DH @ maps.output_HD * self.multiplier
                    written[f"{part.name}({name})"] = moved
                heads += 1
            always_D = always_D + self._always(each, always_D)
            self._add_neurons(form, number, written, always_D)
            written[f"m{number}"] = each.down_FD[list(form.sizes[f"m{number}"])] * self.multiplier
            written[f"m{number}"] *= self.neurons[number](False)[list(form.sizes[f"m{number}"]), None]
            always_D = always_D + each.down_D * self.multiplier
        for gate, (name, rows) in zip(self.answer(False).tolist(), written.items(), strict=True):
            if gate and len(rows):
                form.answer[name] = Map(form.values(name), labels, _balanced(rows @ self.out_DC * gate))
        form.answer[ONE] = Map((1,), labels, _balanced(self._answer_bias(always_D)[None]))
        return form.without_idle()

    def _add_neurons(self, form: Form, number: int, written: dict[str, Tensor], always_D: Tensor) -> None:
        each, name = self.layers[number], f"m{number}"
        left = self.neurons[number](False).nonzero().flatten().tolist()
        form.sizes[name] = tuple(left)
        part = Neurons(name, number)
        part.reads[ONE] = Map((1,), form.values(name), self._inner_bias(number, always_D)[None, left])
        for gate, (path, rows) in zip(self.neuron_reads[number](False).tolist(), written.items(), strict=True):
            if gate and len(rows):
                table = (rows @ each.ffn_read_DD @ each.up_DF)[:, left] * gate
                part.reads[path] = Map(form.values(path), form.values(name), table)
        if left:
            form.parts.append(part)


def _balanced(table: Tensor) -> Tensor:
    """Scores of answers up to what all of them share, which changes no answer."""
    return table - table.mean(-1, keepdim=True)


def _layer(block: Block, width: int, first: float, second: float) -> _Layer:
    def bias(linear: nn.Linear, size: int) -> Tensor:
        return torch.zeros(size) if linear.bias is None else linear.bias.detach().float()

    ffn = block.ffn
    assert isinstance(ffn, FeedForward)
    up_DF, down_FD = ffn.up.weight.detach().float().T, ffn.down.weight.detach().float().T
    return _Layer(
        *linear_norm(block.attention_norm, width, first),
        head_maps(block),
        bias(block.attention.output, width),
        *linear_norm(block.norm_of_ffn, width, second),
        up_DF,
        bias(ffn.up, up_DF.shape[1]),
        down_FD,
        bias(ffn.down, width),
    )


def train_gates(
    paths: Paths,
    batches: Callable[[int], tuple[Tensor, Tensor, Tensor, Tensor]],
    steps: int,
    weight: float,
) -> None:
    """Train gates and constants by the model's answers.

    Arguments:
        batches: of a step: tokens, positions, which places count, and the model's log-probabilities of the answers.
        weight: what an open path costs, in nats a place; it rises to this over the first half.
    """
    gates = [each for each in paths.modules() if isinstance(each, _Gates)]
    alphas = [each.log_alpha for each in gates]
    others = [each for each in paths.parameters() if not any(each is alpha for alpha in alphas)]
    optimizer = torch.optim.Adam([{"params": alphas, "lr": 0.1}, {"params": others, "lr": 0.01}])
    for step in range(steps):
        tokens_BT, positions_BT, real_BT, wanted_BTC = batches(step)
        logits = paths(tokens_BT, positions_BT)
        loss = divergence(logits, wanted_BTC, real_BT)
        total = loss + weight * min(1.0, 2 * step / steps) * paths.cost()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()


def divergence(logits_BTC: Tensor, wanted_BTC: Tensor, real_BT: Tensor) -> Tensor:
    """The mean divergence of the model's answers from a program's, in nats."""
    given = logits_BTC.log_softmax(-1)
    each_BT = (wanted_BTC.exp() * (wanted_BTC - given)).sum(-1)
    return each_BT[real_BT].mean()
