"""Sparse upcycling (Komatsuzaki et al. 2022; Muennighoff et al. 2024, section 4.1.5): a dense model becomes a mixture
of experts.

Shapes: D model width, F inner width of the dense network, E experts, f inner width of an expert.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmlab.config import validate
from lmlab.errors import UserError
from lmlab.methods.olmoe.config import UpcycleConfig
from lmlab.models import ModelConfig, Transformer

_STD = 0.02  # as OLMoE draws its matrices (Muennighoff et al. 2024)


@torch.no_grad()
def upcycle(dense: Transformer, config: UpcycleConfig) -> Transformer:
    """A mixture of experts from a dense model with gated feed-forward networks; every other weight is copied.

    The optimizer and the step counter begin anew; data go on where the dense training was.

    Raises:
        UserError: the model has experts already, or feed-forward networks that are not gated or have biases.
    """
    before = dense.config
    if "moe" in before.ffn_kinds:
        raise UserError("The model is a mixture of experts already.", "Name a dense one.")
    if before.d_ff % config.split:
        raise UserError(
            f"The inner width {before.d_ff} is not a multiple of split {config.split}.", "Choose a divisor."
        )
    moe = {
        "num_experts": config.num_experts,
        "top_k": config.top_k,
        "expert_hidden_size": before.d_ff // config.split,
        "norm_topk_prob": config.preserve_function,
    }
    shape = validate(
        ModelConfig,
        before.model_dump() | {"ffn": "moe", "moe": moe, "d_ff": before.d_ff // config.split},
        "the upcycled model",
    )
    with torch.device("meta"):
        sparse = Transformer(shape)
    weights = {name: tensor.clone() for name, tensor in dense.named_parameters() if ".ffn." not in name}
    generator = torch.Generator().manual_seed(config.seed)
    for layer in range(before.num_layers):
        parts = {name: dense.get_parameter(f"blocks.{layer}.ffn.{name}.weight") for name in ("gate", "up", "down")}
        prefix, like = f"blocks.{layer}.ffn.", parts["gate"]
        gate_up = torch.cat((_copies(parts["gate"], config, generator), _copies(parts["up"], config, generator)), 1)
        down = _copies(parts["down"].t(), config, generator).transpose(1, 2) * config.split
        rows = torch.randn(config.num_experts // config.split, before.d_model, generator=generator) * _STD
        router = rows.repeat_interleave(config.split, 0)
        weights |= {f"{prefix}experts.gate_up": gate_up, f"{prefix}experts.down": down.contiguous()}
        weights[f"{prefix}router.weight"] = router.to(like.device, like.dtype)
    sparse.load_state_dict(weights, assign=True)
    return sparse.train(dense.training)


def _copies(matrix_FD: Tensor, config: UpcycleConfig, generator: torch.Generator) -> Tensor:
    """The slices of a matrix with the inner width first, over and over, [E, f, D], with noise."""
    slices = torch.stack(matrix_FD.chunk(config.split))
    copies_EfD = slices.repeat(config.num_experts // config.split, 1, 1)
    if config.noise:
        replaced = torch.rand(copies_EfD.shape, generator=generator) < config.noise
        drawn = torch.randn(copies_EfD.shape, generator=generator) * _STD
        copies_EfD = torch.where(replaced.to(copies_EfD.device), drawn.to(copies_EfD), copies_EfD)
    return copies_EfD.contiguous()
