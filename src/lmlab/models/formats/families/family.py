"""How one Hugging Face architecture maps to lmlab's features: the kind of rows in the table of `families`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from lmlab.models.config import ModelConfig

Settings = dict[str, Any]
Windows = Literal["none", "all", "layers"]

PLAIN: Settings = {
    "causal": True,
    "token_types": 0,
    "embedding_norm": False,
    "lm_head": True,
    "pooler": False,
    "norm_weight": True,
    "norm_offset": False,
    "rotary_layers": None,
    "attention_scale": None,
    "attention_soft_cap": None,
    "clip_qkv": None,
    "parallel_residual": False,
    "shared_norm": False,
    "head_bias": False,
    "embedding_scale": 1.0,
    "residual_multiplier": 1.0,
    "logit_scale": 1.0,
    "logit_soft_cap": None,
}
"""What no architecture has unless its row of the table says so."""


@dataclass(frozen=True)
class Family:
    """How one Hugging Face architecture maps to lmlab's features.

    Attributes:
        model_type: its name in `config.json`.
        language_model, classifier: the names of its classes; the classifier holds a scalar head.
        prefix: of the tensors of its body.
        features: what every model of the family has, by our names of configuration fields.
        keys: their key for each of our fields that varies (dotted: `moe.top_k`). Fields that share a key must agree.
        defaults: values of our fields whose keys are absent.
        constants: keys that must have this value where present, and are written.
        names: our tensor names to theirs, without `.weight` and `.bias`; `{i}` stands for the layer.
        experts: our stacked matrices of experts to theirs, laid end to end along the output; `{e}` stands for an
            expert.
        stacked: our stacked matrices to tensors that some of their checkpoints hold in place of those.
        transposed: ends of our names whose matrices they store transposed.
        fused: their names of tensors that hold several of ours, laid end to end along the output.
        interleaved: fused matrices hold the parts of one head after the other.
        head: their name of the head.
        renamed: beginnings of names of tensors in some checkpoints, to those of the table.
        unread: beginnings of names of tensors that lmlab leaves in the file, such as the heads of encoders.
        equal_keys: keys that must have the same value as another one.
        other_keys: second names of keys.
        windows: which layers may have sliding windows: `none`; `all` or none; or any, by `layer_types`.
        rope_theta: base of the rotary frequencies where no key says so.
        rope_of_kinds: full and sliding layers have rotary frequencies of their own.
        partial: the key for the part of each head that is rotated, None if all of it always is; and its default.
        scalings: the kinds of rotary scaling, None for all.
        begins_windows: its models are lost in a text that does not begin with the begin mark.
        read: further fields of ours, from their settings and the fields read so far; problems go to the list.
        write: further settings of theirs.
        inert: further tensors of theirs, with their shapes, that change nothing and are written as zeros.
        fits: what else a configuration must satisfy.
    """

    model_type: str
    language_model: str
    classifier: str | None
    prefix: str
    features: Settings
    keys: dict[str, str]
    defaults: Settings
    constants: Settings
    names: dict[str, str]
    transposed: tuple[str, ...] = ()
    fused: dict[str, tuple[str, ...]] = field(default_factory=dict)
    interleaved: bool = False
    head: str = "lm_head"
    renamed: dict[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    equal_keys: dict[str, str] = field(default_factory=dict)
    other_keys: dict[str, str] = field(default_factory=dict)
    experts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    stacked: dict[str, str] = field(default_factory=dict)
    windows: Windows = "none"
    rope_theta: float = 10_000.0
    rope_of_kinds: bool = False
    partial: tuple[str, float] | None = None
    scalings: tuple[str, ...] | None = None
    begins_windows: bool = False
    read: Callable[[Settings, Settings, list[str]], None] = lambda settings, data, problems: None
    write: Callable[[ModelConfig], Settings] = lambda config: {}
    inert: Callable[[ModelConfig], dict[str, tuple[int, ...]]] = lambda config: {}
    fits: Callable[[ModelConfig], bool] = lambda config: True
