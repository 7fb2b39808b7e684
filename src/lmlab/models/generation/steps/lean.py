"""A step of decoding with few operators, for a CPU.

To give each row one token is little arithmetic: what a layer costs beyond reading its weights is the number of
operators and the Python between them. This does what `Transformer.forward` does, in the same order, on matrices [R, D],
without what only other passes need: listeners, packed documents, gradients, a prefix. Where a module is the plain one
its operator is called directly; adapters, experts and whatever else stands in its place are called as they are.

Shapes: R rows, D model width, N query heads, K key-value heads, H width of a head, S keys, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmlab.hardware.gemm import are_few_half_rows, few_rows, linear
from lmlab.models.attention.attention import Attention
from lmlab.models.attention.backends import one_query
from lmlab.models.attention.cache import KVCache
from lmlab.models.attention.rope import Table, apply_rotary, rotary_table
from lmlab.models.attention.visibility import Visibility
from lmlab.models.block import Block
from lmlab.models.config import ModelConfig
from lmlab.models.layers.feed_forward import ACTIVATIONS, FeedForward
from lmlab.models.layers.joined import joint
from lmlab.models.layers.linear import Linear
from lmlab.models.layers.norm import RMSNorm
from lmlab.models.layers.packed import PackedLinear
from lmlab.models.moe.layer import MoE
from lmlab.models.transformer import Transformer

_Map = Callable[[Tensor], Tensor]
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_HOOKS_OF_ALL = ("_global_forward_hooks", "_global_forward_pre_hooks")


def can_be_lean(model: Transformer, cache: KVCache) -> bool:
    """Whether a step on this cache can be taken so: on a CPU, with plain modules (no hooks, not compiled, not spread
    over processes), where nothing but the cache's own slots is read and rotations do not depend on the text's length.
    """
    config = model.config
    scaling = config.rope_scaling
    plain = model.embedding.weight.device.type == "cpu" and model.attention_backend == "auto" and model.spread is None
    by_length = scaling is not None and scaling.depends_on_length
    if not plain or by_length or cache.prefix is not None or cache.memory is not None or not config.lm_head:
        return False
    if any(getattr(nn.modules.module, name) for name in _HOOKS_OF_ALL) or any(map(_is_wrapped, model.modules())):
        return False
    return model.score is None and type(model) is Transformer and all(_is_plain_block(each) for each in model.blocks)


def _is_plain_block(block: nn.Module) -> bool:
    assert isinstance(block, Block)
    parts = type(block) is Block and type(block.attention) is Attention
    return parts and (type(block.ffn) is FeedForward or isinstance(block.ffn, MoE))


def _is_wrapped(module: nn.Module) -> bool:
    """Whether a module does more, or something else, than the `forward` of its class: it has hooks, a `forward` of its
    own, or was compiled.
    """
    hooked = any(getattr(module, name) for name in _HOOKS)
    return hooked or "forward" in vars(module) or module._compiled_call_impl is not None


class LeanStep:
    """One further token for every row of a cache, to which keys and values are added as the model adds them.

    Arguments:
        model: in evaluation mode, where `can_be_lean`; its modules and their weights must stay those that they are, as
            keys and values in the cache are of these weights too.
    """

    def __init__(self, model: Transformer) -> None:
        self._model = model
        self._blocks = [_LeanBlock(model.block(layer)) for layer in range(model.config.num_layers)]

    def run(self, ids_R1: Tensor, cache: KVCache) -> Tensor:
        """The logits [R, V] after these tokens, in fp32.

        Raises:
            ValueError: the cache is full, or a learned table has no further position.
        """
        model = self._model
        cache.extend(1)
        position_ids_R1 = cache.positions(1)
        x_RD = model.enter(ids_R1, position_ids_R1)[:, 0]
        shared = _Shared(model.config, cache, position_ids_R1, x_RD.dtype)
        for block in self._blocks:
            x_RD = block.run(x_RD, shared)
        logits_RV = model.read_out(x_RD).float()
        # the fused kernel gives numbers for a query, or for keys, that are none
        made_R = torch.stack(shared.made).sum((0, 2, 3), dtype=torch.float32)
        if not bool(made_R.isfinite().all()):
            logits_RV[~made_R.isfinite()] = float("nan")
        return logits_RV


class _Shared:
    """What all layers of a step share: what their queries see, and their rotations."""

    def __init__(self, config: ModelConfig, cache: KVCache, position_ids_R1: Tensor, dtype: torch.dtype) -> None:
        self.slots, self._visibility = cache.newest(), cache.visibility(1)
        self.made: list[Tensor] = []  # queries and keys of each layer
        self.rotary: Table | None = None
        self.sliding_rotary: Table | None = None
        self.whole = config.rotary_dim == config.head_dim  # the rotation is of whole heads
        if config.positions == "rotary":
            self.rotary = self.sliding_rotary = self._by_row(rotary_table(config, position_ids_R1, dtype))
            if config.sliding_rope_theta is not None and "sliding" in config.attention_kinds:
                self.sliding_rotary = self._by_row(rotary_table(config, position_ids_R1, dtype, sliding=True))

    def _by_row(self, table: Table) -> Table:
        """[R, 1, 1, W] to [R, 1, W], or twice that with the signs of `rotate`."""
        cos, sin = table[0].squeeze(2), table[1].squeeze(2)
        return (torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)) if self.whole else (cos, sin)

    def rotate(self, heads_RNH: Tensor, table: Table) -> Tensor:
        """As `apply_rotary`, to the last bit: where whole heads turn, half of its operators."""
        if not self.whole:
            return apply_rotary(heads_RNH, table)
        return (heads_RNH * table[0]).addcmul_(heads_RNH.roll(heads_RNH.shape[-1] // 2, -1), table[1])

    def seen(self, window: int | None) -> Visibility:
        """By a layer with this window."""
        return self._visibility if window is None else self._visibility.within(window, torch.device("cpu"))


class _LeanBlock:
    """As `Block.forward`."""

    def __init__(self, block: Block) -> None:
        position, attention = block.norm_position, block.attention
        norm, ffn_norm = _norm(block.attention_norm), _norm(block.norm_of_ffn)
        self._parallel, self._multiplier, self._post = block.parallel, block.multiplier, position == "post"
        self._read, self._read_ffn = (norm, ffn_norm) if position in ("pre", "both") else (_as_it_is, _as_it_is)
        self._norm, self._ffn_norm = norm, ffn_norm
        self._write = _out(position, norm, block.attention_out_norm)
        self._write_ffn = _out(position, ffn_norm, block.ffn_out_norm)
        self._attention, self._output = attention, _product(attention.output)
        self._project = _products((attention.query, attention.key, attention.value))
        self._heads, self._kv_heads, self._width = attention.num_heads, attention.num_kv_heads, attention.head_dim
        self._plain = attention.query_norm is None and attention.key_norm is None and attention.clip is None
        self._ffn = _feed_forward(block.ffn)

    def run(self, x_RD: Tensor, shared: _Shared) -> Tensor:
        """The residual stream after the layer, [R, D]."""
        entered_RD = x_RD
        written_RD = self._write(self._attend(self._read(x_RD), shared))
        x_RD = x_RD + (written_RD if self._multiplier == 1 else written_RD * self._multiplier)
        if self._post:
            x_RD = self._norm(x_RD)
        written_RD = self._write_ffn(self._ffn(self._read_ffn(entered_RD if self._parallel else x_RD)))
        x_RD = x_RD + (written_RD if self._multiplier == 1 else written_RD * self._multiplier)
        return self._ffn_norm(x_RD) if self._post else x_RD

    def _attend(self, x_RD: Tensor, shared: _Shared) -> Tensor:
        attention, heads = self._attention, self._heads
        qk_RCH, value_RKH = self._heads_of(self._project(x_RD))
        rotary = shared.rotary if attention.window is None else shared.sliding_rotary
        if rotary is not None and attention.rotates:
            qk_RCH = shared.rotate(qk_RCH, rotary)
        q_RNH, k_RKH = qk_RCH.narrow(1, 0, heads), qk_RCH.narrow(1, heads, self._kv_heads)
        if attention.query_scale is not None:
            q_RNH = q_RNH * attention.query_scale
        shared.made.append(qk_RCH)
        key_place, value_place, keys, values = shared.slots[attention.layer]
        key_place.copy_(k_RKH)
        value_place.copy_(value_RKH)
        if keys.dtype != q_RNH.dtype:
            keys, values = keys.to(q_RNH.dtype), values.to(q_RNH.dtype)
        out = one_query(q_RNH.unsqueeze(2), keys, values, shared.seen(attention.window), attention.soft_cap)
        return self._output(out.reshape(len(x_RD), -1))

    def _heads_of(self, projected_RE: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys beside each other, so that they turn together, [R, N + K, H]; and values, [R, K, H]."""
        heads, kv_heads, width = self._heads, self._kv_heads, self._width
        if self._plain:
            all_RCH = projected_RE.contiguous().view(-1, heads + 2 * kv_heads, width)
            return all_RCH.narrow(1, 0, heads + kv_heads), all_RCH.narrow(1, heads + kv_heads, kv_heads)
        attention = self._attention
        query, key, value = projected_RE.split([heads * width, kv_heads * width, kv_heads * width], -1)
        norms = attention.query_norm, attention.key_norm
        if attention.full_norm and norms[0] is not None and norms[1] is not None:
            query, key = norms[0](query), norms[1](key)
        if attention.clip is not None:
            query, key, value = (each.clamp(-attention.clip, attention.clip) for each in (query, key, value))
        q_RNH, k_RKH = query.unflatten(1, (heads, width)), key.unflatten(1, (kv_heads, width))
        if not attention.full_norm and norms[0] is not None and norms[1] is not None:
            q_RNH, k_RKH = norms[0](q_RNH), norms[1](k_RKH)
        return torch.cat((q_RNH, k_RKH), 1), value.unflatten(1, (kv_heads, width))


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _out(position: str, norm: _Map, out_norm: nn.Module | None) -> _Map:
    """What is made of what a sub-layer's last matrix gives."""
    if out_norm is not None:
        return _norm(out_norm)
    return norm if position == "reordered" else _as_it_is


def _feed_forward(ffn: nn.Module) -> _Map:
    if isinstance(ffn, MoE):
        return lambda x_RD: ffn(x_RD[:, None])[0][:, 0]
    assert isinstance(ffn, FeedForward)
    down, activation = _product(ffn.down), ACTIVATIONS[ffn.activation]
    if ffn.gate is None:
        up = _product(ffn.up)
        return lambda x_RD: down(activation(up(x_RD)))
    both, inner = _products((ffn.gate, ffn.up)), ffn.up.out_features

    def gated(x_RD: Tensor) -> Tensor:
        made = both(x_RD)
        return down(activation(made.narrow(1, 0, inner)).mul_(made.narrow(1, inner, inner)))

    return gated


def _products(layers: Sequence[nn.Module]) -> _Map:
    """What layers that read the same input do, side by side: [R, K] to [R, their N together]."""
    together = joint(layers)
    if together is not None:
        return _product(together)
    each = [_product(layer) for layer in layers]
    return lambda x_RK: torch.cat([product(x_RK) for product in each], 1)


def _product(layer: nn.Module) -> _Map:
    """What the layer does, [R, K] to [R, N]."""
    if type(layer) is PackedLinear and layer.bias is None:
        return layer.product
    if type(layer) is not Linear:
        return layer.forward
    weight, bias = layer.weight, layer.bias

    def product(x_RK: Tensor) -> Tensor:
        if bias is None and are_few_half_rows(x_RK, weight):
            return few_rows(x_RK, weight)
        return linear(x_RK, weight, bias)

    return product


def _norm(norm: nn.Module) -> _Map:
    """What the norm does, [R, D] to [R, D].

    PyTorch has no fused root-mean-square norm for CPUs, but one by mean and variance. The mean of x beside -x is zero
    and its variance the mean square: of what that norm gives, the first half is wanted, with one rounding for two.
    """
    if type(norm) is not RMSNorm:
        return norm.forward
    width, eps = norm.normalized_shape[0], norm.eps or 0.0
    twice: dict[torch.dtype, Tensor] = {}

    def normalize(x_RD: Tensor) -> Tensor:
        weight = twice.get(x_RD.dtype)
        if weight is None:
            weight = twice[x_RD.dtype] = torch.cat((norm.weight, norm.weight)).to(x_RD.dtype)
        mirrored = torch.cat((x_RD, x_RD.neg()), -1)
        return F.layer_norm(mirrored, (2 * width,), weight, None, eps).narrow(-1, 0, width)

    return normalize
