"""Another window for a trained model: its length, and what that asks of its rotary positions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from lmlab.config import Config
from lmlab.errors import UserError
from lmlab.models.config import ModelConfig, RopeScaling

Rule = Literal["auto", "auto-ntk"]
WITHOUT_WEIGHTS = frozenset({"max_seq_len", "rope_theta", "rope_scaling", "rotary_layers"})
"""Fields of a model with rotary positions that say nothing of the shapes of its weights."""


class WindowConfig(Config):
    """How far a model shall look, from the first step on.

    Attributes:
        max_seq_len: the new window.
        rope_theta: base of the rotary frequencies: `auto` is 2 t theta for a window t times as long, near which ProLong
            found the best (Gao et al. 2024, section 4.1), `auto-ntk` theta t^(d / (d - 2)) for heads of width d, `keep`
            the one that it has.
        rope_scaling: in place of another base, how frequencies are changed: `yarn` or `longrope`, for instance.
        keep_rope_scaling: leave a scaling that the model already has, under another base.
        without_rotation: every so many layers, the last of them does not rotate (4 in SmolLM3); 1 takes the rotation
            from all (DroPE, 2025), which needs some training at the old length.
    """

    max_seq_len: Annotated[int, Field(gt=0, le=2**31)]
    rope_theta: Rule | Literal["keep"] | PositiveFloat | None = None
    rope_scaling: RopeScaling | None = None
    keep_rope_scaling: bool = False
    without_rotation: PositiveInt | None = None

    @model_validator(mode="after")
    def _check(self) -> WindowConfig:
        if self.rope_scaling is not None and self.rope_theta in ("auto", "auto-ntk"):
            raise ValueError(
                "rope_scaling extends the window by itself; give rope_theta a number, keep, or leave it out."
            )
        return self


def extended_theta(theta: float, old: int, new: int, width: int, rule: Rule) -> float:
    """The base of rotary frequencies for another window.

    Arguments:
        old, new: the windows.
        width: rotated dimensions of a head.
        rule: `auto`: 2 t theta, t = new / old; `auto-ntk`: theta t^(width / (width - 2)) (NTK-aware scaling). For
            t of 1 or less both leave theta as it is, as does a single pair of dimensions, whose frequency is 1 by any.
    """
    times = new / old
    if times <= 1 or width <= 2:
        return theta
    return float(2 * times * theta if rule == "auto" else theta * times ** (width / (width - 2)))


def with_window(config: ModelConfig, window: WindowConfig) -> ModelConfig:
    """A model's configuration with another window.

    Raises:
        UserError: it has no rotary positions, or a scaling of its own that would be changed unasked.
    """
    if config.positions == "learned":
        raise UserError(
            f"The model has a table of {config.max_seq_len} learned positions, which cannot be extended.",
            "Leave 'window' out.",
        )
    changes: dict[str, object] = {"max_seq_len": window.max_seq_len}
    if config.positions == "rotary":
        changes |= _rotary_changes(config, window)
    elif window.rope_theta not in (None, "keep") or window.rope_scaling or window.without_rotation:
        raise UserError("The model has no rotary positions to change.", "Give the window's max_seq_len alone.")
    return ModelConfig.model_validate(config.model_dump() | changes)


def _rotary_changes(config: ModelConfig, window: WindowConfig) -> dict[str, object]:
    changes: dict[str, object] = {}
    theta = window.rope_theta
    if theta is None:
        theta = "keep" if window.rope_scaling is not None or window.without_rotation == 1 else "auto"
    if theta != "keep" and config.rope_scaling is not None and not window.keep_rope_scaling:
        raise UserError(
            f"The model's positions are scaled already (rope_scaling {config.rope_scaling.type}); another rope_theta"
            " would change what that means.",
            "Set window.keep_rope_scaling to keep it, or window.rope_theta to keep.",
        )
    if theta in ("auto", "auto-ntk"):
        rule: Rule = "auto" if theta == "auto" else "auto-ntk"
        changes["rope_theta"] = extended_theta(
            config.rope_theta, config.max_seq_len, window.max_seq_len, config.rotary_dim, rule
        )
    elif theta != "keep":
        changes["rope_theta"] = theta
    if window.rope_scaling is not None:
        changes["rope_scaling"] = window.rope_scaling.model_dump()
    if window.without_rotation is not None:
        every = window.without_rotation
        had = config.rotary_layers or (True,) * config.num_layers
        changes["rotary_layers"] = tuple(has and (layer + 1) % every != 0 for layer, has in enumerate(had))
    return changes


def window_notice(old: ModelConfig, new: ModelConfig) -> str | None:
    """What a user should know of a window that grows while positions are left as they were; None if nothing."""
    same = old.rope_theta == new.rope_theta and old.rope_scaling == new.rope_scaling
    rotates = new.rotary_layers is None or any(new.rotary_layers)
    if new.max_seq_len <= old.max_seq_len or not same or old.positions != "rotary" or not rotates:
        return None
    auto = extended_theta(old.rope_theta, old.max_seq_len, new.max_seq_len, old.rotary_dim, "auto")
    return (
        f"The window grows from {old.max_seq_len:,} to {new.max_seq_len:,} tokens with rope_theta {old.rope_theta:g}"
        f" unchanged; window.rope_theta: auto would make it {auto:g}."
    )
