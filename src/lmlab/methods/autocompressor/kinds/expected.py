"""Expected attention (KVPress): how much later queries, drawn as those of the text are spread, will attend to a key.

Shapes: L layers, T tokens, K key-value heads, G query heads of each, N = K G, H width of a head, R rotated dimensions.
"""

from __future__ import annotations

import math

import torch
from pydantic import PositiveInt
from torch import Tensor

from lmlab.methods.autocompressor.kinds.base import register
from lmlab.methods.autocompressor.kinds.config import KindConfig
from lmlab.methods.autocompressor.kinds.prune import Pruning
from lmlab.models import KVRows, ModelConfig
from lmlab.models.attention.rope import Table, apply_rotary, rotary_table
from lmlab.models.internals.taps import Recorder


class ExpectedConfig(KindConfig):
    """How much is kept, and how far the expectation looks.

    Attributes:
        ahead: positions after the text over which rotations are averaged.
    """

    ahead: PositiveInt = 512


@register("prune:expected")
class Expected(Pruning):
    """exp(k.m / sqrt(H) + k'Sk / 2H) |v|, with the mean m and the covariance S of queries under the mean rotation of
    the positions to come; each query head's expectations are a distribution over keys, of which a group takes the mean.
    """

    Config = ExpectedConfig

    def scores(self, rows: KVRows, ids_1T: Tensor, query_1Q: Tensor | None) -> Tensor:
        assert isinstance(self.config, ExpectedConfig)
        seen = Recorder("blocks.*.attention.query")
        self.model(ids_1T, taps=seen, logits="none")
        length, config = ids_1T.shape[1], self.model.config
        found = []
        for layer in range(config.num_layers):
            q_NTH = seen[f"blocks.{layer}.attention.query"][0].float()
            table, mean = _rotations(config, layer, length, self.config.ahead, ids_1T.device)
            if table is not None:
                cos, sin = table
                q_NTH = apply_rotary(q_NTH[None], (cos, -sin))[0]  # as before rotation
            expected = expected_attention(q_NTH, rows.keys_LBKMH[layer, 0].float(), mean)
            found.append(expected + rows.values_LBKMH[layer, 0].float().norm(dim=-1).clamp(min=1e-30).log())
        return torch.stack(found)


def expected_attention(q_NTH: Tensor, k_KTH: Tensor, mean_rotation: Tensor | None) -> Tensor:
    """The logarithm of what queries like these will attend to, [K, T].

    Arguments:
        q_NTH: queries before rotation.
        k_KTH: keys after it.
        mean_rotation: [H, H]; None where nothing is rotated.
    """
    width = q_NTH.shape[-1]
    mean_NH = q_NTH.mean(1)
    apart_NTH = q_NTH - mean_NH[:, None]
    covariance_NHH = apart_NTH.transpose(1, 2) @ apart_NTH / q_NTH.shape[1]
    if mean_rotation is not None:
        mean_NH = mean_NH @ mean_rotation.T
        covariance_NHH = mean_rotation @ covariance_NHH @ mean_rotation.T
    k_NTH = k_KTH.repeat_interleave(len(q_NTH) // len(k_KTH), 0)
    linear = torch.einsum("nth,nh->nt", k_NTH, mean_NH) / math.sqrt(width)
    square = torch.einsum("nth,nhj,ntj->nt", k_NTH, covariance_NHH, k_NTH) / (2 * width)
    by_head = (linear + square).log_softmax(-1).unflatten(0, (len(k_KTH), -1))
    return by_head.logsumexp(1) - math.log(by_head.shape[1])


def _rotations(
    config: ModelConfig, layer: int, length: int, ahead: int, device: torch.device
) -> tuple[Table | None, Tensor | None]:
    """The rotations of the text's tokens, and the mean one of those to come as a matrix."""
    if config.positions != "rotary" or (config.rotary_layers is not None and not config.rotary_layers[layer]):
        return None, None
    sliding = config.attention_kinds[layer] == "sliding"
    places = torch.arange(length + ahead, device=device)[None]
    cos, sin = (x[:, :, :length] for x in rotary_table(config, places[:, :length], torch.float32, sliding=sliding))
    scale = cos.square() + sin.square()  # some scalings multiply by a factor, which is undone twice: once is left
    later = rotary_table(config, places[:, length:], torch.float32, sliding=sliding)
    mean_cos, mean_sin = (x[0, 0].mean(0) for x in later)
    half, width = len(mean_cos), config.head_dim
    matrix = torch.eye(width, device=device)
    first, second = torch.arange(half, device=device), torch.arange(half, 2 * half, device=device)
    matrix[first, first], matrix[first, second] = mean_cos, -mean_sin
    matrix[second, first], matrix[second, second] = mean_sin, mean_cos
    return (cos / scale, sin / scale), matrix
