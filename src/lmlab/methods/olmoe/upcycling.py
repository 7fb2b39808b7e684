"""Sparse upcycling (Komatsuzaki et al. 2022; Muennighoff et al. 2024, section 4.1.5): a dense model becomes a mixture
of experts.

Shapes: D model width, F inner width of the dense network, E experts, f inner width of an expert.
"""

from __future__ import annotations

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from lmlab.config import Config, validate
from lmlab.errors import UserError
from lmlab.models import ModelConfig, Transformer

_STD = 0.02


class UpcycleConfig(Config):
    """How experts are made of a dense feed-forward network.

    Attributes:
        num_experts: E.
        top_k: experts for each token.
        noise: share of the entries of each expert that are replaced by draws from N(0, 0.02), so that experts differ.
        preserve_function: divide the chosen probabilities by their sum, so that the model computes what the dense one
            did. Without, as in the paper, the output of a block is smaller by the sum of the chosen probabilities
            (about 0.54 for 2 of 8).
        split: cut the inner units of the dense network into so many slices, each of which makes E / split experts,
            scaled so that their sum is kept. The slices of one copy share their router's first row, so that they are
            chosen together; top_k must be a multiple of split.
        seed: of the router and the noise.
    """

    num_experts: int = Field(ge=2)
    top_k: PositiveInt
    noise: float = Field(default=0.0, ge=0, le=1)
    preserve_function: bool = True
    split: PositiveInt = 1
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> UpcycleConfig:
        if self.num_experts % self.split or self.top_k % self.split:
            raise ValueError(
                f"num_experts {self.num_experts} and top_k {self.top_k} must be multiples of split {self.split}."
            )
        if self.preserve_function and self.top_k == 1:
            raise ValueError(
                "preserve_function with top_k 1 makes every weight 1, so the router would learn nothing; raise top_k."
            )
        return self


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
