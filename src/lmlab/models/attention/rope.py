"""Rotary position embeddings (Su et al. 2021), in the half-split layout of Llama, with the common ways to
extend them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from lmlab.models.config import ModelConfig, RopeScaling

Table = tuple[Tensor, Tensor]


def rotary_table(
    config: ModelConfig,
    position_ids_BT: Tensor,
    dtype: torch.dtype,
    *,
    starts_BT: Tensor | None = None,
    sliding: bool = False,
) -> Table:
    """Cosines and sines of the rotation angles.

    Arguments:
        config: gives the width of a head, theta and the scaling.
        position_ids_BT: positions, integers [B, T]; -1 means no position, which rotates nothing.
        dtype: type of the result; the angles themselves are computed in fp32.
        starts_BT: where the document of each token starts in its row; None if a row is one text.
        sliding: those of layers with a sliding window, where they have their own (`sliding_rope_theta`).

    Returns:
        cosines and sines, each [B, 1, T, rotary_dim / 2], to be used with `apply_rotary`.
    """
    positions = position_ids_BT.clamp(min=0)  # of padding: it is masked, and an angle of 0 keeps it finite
    theta, scaling = config.rope_theta, config.rope_scaling
    if sliding and config.sliding_rope_theta is not None:
        theta, scaling = config.sliding_rope_theta, None
    # counted only where it matters: it costs a pass over the positions at every step
    lengths = text_lengths(positions, starts_BT) if scaling is not None and scaling.depends_on_length else positions
    frequencies, factor = _frequencies(config.rotary_dim, theta, scaling, lengths)
    angles = positions[:, None, :, None].float() * frequencies
    return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def rotary_frequencies(config: ModelConfig, length: int | None = None) -> Tensor:
    """The angle of a step of one position for each pair of rotated dimensions, fp32 [rotary_dim / 2].

    Arguments:
        length: of the text, for scalings that depend on it; by default the model's window.
    """
    lengths = torch.tensor([[length or config.max_seq_len]])
    return _frequencies(config.rotary_dim, config.rope_theta, config.rope_scaling, lengths)[0].flatten()


def text_lengths(position_ids_BT: Tensor, starts_BT: Tensor | None = None) -> Tensor:
    """How long the text of each token is so far, [B, 1], or [B, T] in rows of several documents: its last position and
    one.
    """
    if starts_BT is None:
        return position_ids_BT.amax(1, keepdim=True) + 1
    last_BT = torch.zeros_like(position_ids_BT).scatter_reduce(1, starts_BT, position_ids_BT, "amax")
    return last_BT.gather(1, starts_BT) + 1


def apply_rotary(x_BNTH: Tensor, table: Table) -> Tensor:
    """Rotate each pair (i, i + R/2) of the first R dimensions of every head by its position's angle, R twice the width
    of the table; shapes [B, heads, T, H] in and out.
    """
    rotated_width = 2 * table[0].shape[-1]
    if rotated_width < x_BNTH.shape[-1]:  # GPT-NeoX, Phi: the rest of a head has no position
        first = apply_rotary(x_BNTH[..., :rotated_width].contiguous(), table)
        return torch.cat((first, x_BNTH[..., rotated_width:]), -1)
    if not torch.is_grad_enabled():
        return _rotate(x_BNTH, *table)
    rotated: Tensor = _Rotate.apply(x_BNTH, *table)
    return rotated


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is the rotation back, so nothing but the table is kept."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors  # type: ignore[attr-defined]
        return _rotate(grad_outputs[0], cos, -sin), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    if torch.compiler.is_compiling():  # which fuses it
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    # the same, with each half written once and no temporaries
    out = torch.empty_like(x)
    out_first, out_second = out.chunk(2, -1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin)
    return out


def _frequencies(width: int, theta: float, scaling: RopeScaling | None, lengths: Tensor) -> tuple[Tensor, float]:
    """Angles a position in fp32, and the factor on cosines and sines.

    Arguments:
        width: R, of the rotated part of a head.
        lengths: of the text of each token, [B, 1] or [B, T], for scalings that depend on it.

    Returns:
        [R / 2], or [B, 1, 1 or T, R / 2] where they depend on the text.
    """
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=lengths.device) / width
    if scaling is not None and scaling.type == "dynamic":
        # NTK-aware scaling: theta grows so that the slowest pair turns over the text as it did over the original
        # length, which the exponent R / (R - 2) makes exact, while the fastest pairs hardly change
        original = float(scaling.original_max_seq_len or 0)
        length = lengths.clamp(min=int(original)).float()[:, None, :, None]
        grown = theta * (scaling.factor * length / original - (scaling.factor - 1)) ** (width / (width - 2))
        return 1.0 / grown**exponents, 1.0
    frequencies = 1.0 / theta**exponents
    if scaling is None:
        return frequencies, 1.0
    if scaling.type == "linear":
        return frequencies / scaling.factor, 1.0
    if scaling.type == "llama3":
        return _llama3(frequencies, scaling), 1.0
    if scaling.type == "longrope":
        return _longrope(frequencies, scaling, lengths)
    return _yarn(frequencies, scaling, width, theta)


def _longrope(frequencies: Tensor, scaling: RopeScaling, lengths: Tensor) -> tuple[Tensor, float]:
    original = scaling.original_max_seq_len or 0
    short, long = (frequencies / frequencies.new_tensor(each) for each in (scaling.short_factor, scaling.long_factor))
    factor = scaling.attention_factor
    if factor is None:  # LongRoPE (Ding et al. 2024): longer texts flatten the softmax, which this sharpens again
        factor = math.sqrt(1 + math.log(scaling.factor) / math.log(original)) if scaling.factor > 1 else 1.0
    return torch.where((lengths > original)[:, None, :, None], long, short), factor


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Pairs that turn often over the original length stay, rare ones are slowed down, and between them goes a line."""
    rotations = (scaling.original_max_seq_len or 0) * frequencies / (2 * math.pi)
    kept = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)
    return frequencies * kept + frequencies / scaling.factor * (1 - kept)


def _yarn(frequencies: Tensor, scaling: RopeScaling, width: int, theta: float) -> tuple[Tensor, float]:
    """YaRN (Peng et al. 2023, section 3.2): as `_llama3`, with the line over the number of the pair."""

    def dimension(rotations: float) -> float:
        """The pair of dimensions that turns so many times over the original length."""
        return width * math.log((scaling.original_max_seq_len or 0) / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    # 1e-3 where both ends meet: a step in place of a division by zero, as `transformers` has it
    pairs = torch.arange(width // 2, dtype=torch.float32, device=frequencies.device)
    divided = ((pairs - low) / (high - low or 1e-3)).clamp(0, 1)
    factor = scaling.attention_factor
    if factor is None:
        # their fit of the temperature that gives the lowest perplexity (eq. 22)
        factor = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    return frequencies / scaling.factor * divided + frequencies * (1 - divided), factor
