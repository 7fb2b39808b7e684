"""Fresh weights for a transformer, parameter by parameter, from one stream of random numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lmlab.models.config import ModelConfig
from lmlab.models.spread import is_spread

_WRITE_TO_THE_STREAM = ("attention.output.weight", "ffn.down.weight", "shared.down.weight", "experts.down")
_CUT = 3.0  # standard deviations, as OLMo cuts its normal distributions


def draw(name: str, parameter: Tensor, config: ModelConfig, generator: torch.Generator) -> None:
    """Fill one parameter: matrices by `init`, `init_std` and `output_init`, biases with 0, weights of norms with 1.

    The numbers are drawn on the CPU, so that they are the same on every device.
    """
    if parameter.dim() < 2:
        parameter.fill_(1.0 if name.endswith("norm.weight") and not config.norm_offset else 0.0)
        return
    std = _standard_deviation(name, parameter, config)
    if std == 0:
        parameter.zero_()
        return
    if config.init in ("truncated_normal", "mitchell"):
        drawn = torch.empty(parameter.shape)
        nn.init.trunc_normal_(drawn, std=std, a=-_CUT * std, b=_CUT * std, generator=generator)
    else:
        drawn = torch.randn(parameter.shape, generator=generator) * std
    if is_spread(parameter):  # every process draws the whole and keeps its share
        from torch.distributed.tensor import distribute_tensor

        drawn = distribute_tensor(
            drawn.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
        )
    parameter.copy_(drawn)


def _standard_deviation(name: str, parameter: Tensor, config: ModelConfig) -> float:
    inputs, writes = parameter.shape[-1], name.endswith(_WRITE_TO_THE_STREAM)
    if config.init == "mitchell":
        return (2 * inputs * (_layer_number(name) + 1)) ** -0.5 if writes else inputs**-0.5
    if writes and config.output_init == "zero":
        return 0.0
    if writes and config.output_init == "depth_scaled":
        return config.init_std / math.sqrt(2 * config.num_layers)
    return config.init_std


def _layer_number(name: str) -> int:
    """Of a parameter; 0 for experts that all layers share."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blocks" else 0
