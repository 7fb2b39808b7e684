"""Weights to and from Hugging Face directories (`config.json`, `model.safetensors`).

Each family is a table: which features it has, what its configuration calls them, and what it calls each tensor. A model whose features fit no family
is saved under lmlab's own names (`model_type: lmlab`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lmlab.config import validate
from lmlab.errors import LmlabError, UserError, did_you_mean
from lmlab.files import atomic_file, read_json, write_json
from lmlab.models.config import ModelConfig
from lmlab.models.transformer import Transformer

NATIVE = "lmlab"
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """How one Hugging Face architecture maps to lmlab's features.

    Attributes:
        model_type, architecture: its names in `config.json`.
        features: what every model of the family has.
        keys: Hugging Face's key for each of our configuration fields that varies.
        constants: further keys to write.
        names: our tensor names to theirs; `{i}` stands for the layer.
        transposed: our names of the matrices that they store transposed.
        fused: their names of tensors that hold several of ours, concatenated along the output.
    """

    model_type: str
    architecture: str
    features: dict[str, Any]
    keys: dict[str, str]
    constants: dict[str, Any]
    names: dict[str, str]
    transposed: frozenset[str] = frozenset()
    fused: tuple[tuple[str, tuple[str, ...]], ...] = ()
    prefix: str = "model."


_LLAMA_KEYS = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "d_ff": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "init_std": "initializer_range",
}
_LLAMA_NAMES = {
    "embedding": "embed_tokens",
    "final_norm": "norm",
    "blocks.{i}.attention_norm": "layers.{i}.input_layernorm",
    "blocks.{i}.ffn_norm": "layers.{i}.post_attention_layernorm",
    "blocks.{i}.attention.query": "layers.{i}.self_attn.q_proj",
    "blocks.{i}.attention.key": "layers.{i}.self_attn.k_proj",
    "blocks.{i}.attention.value": "layers.{i}.self_attn.v_proj",
    "blocks.{i}.attention.output": "layers.{i}.self_attn.o_proj",
    "blocks.{i}.ffn.gate": "layers.{i}.mlp.gate_proj",
    "blocks.{i}.ffn.up": "layers.{i}.mlp.up_proj",
    "blocks.{i}.ffn.down": "layers.{i}.mlp.down_proj",
}
_LLAMA_FEATURES = {"norm": "rmsnorm", "positions": "rotary", "activation": "silu", "gated": True}
_NO_BIAS = {"qkv_bias": False, "attention_output_bias": False, "ffn_bias": False, "norm_bias": False}

FAMILIES = (
    Family(
        "llama",
        "LlamaForCausalLM",
        {**_LLAMA_FEATURES, **_NO_BIAS, "qk_norm": "none"},
        _LLAMA_KEYS,
        {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
        _LLAMA_NAMES,
    ),
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        {**_LLAMA_FEATURES, **_NO_BIAS, "qk_norm": "head"},
        _LLAMA_KEYS,
        {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
        _LLAMA_NAMES
        | {
            "blocks.{i}.attention.query_norm": "layers.{i}.self_attn.q_norm",
            "blocks.{i}.attention.key_norm": "layers.{i}.self_attn.k_norm",
        },
    ),
    Family(
        "gpt2",
        "GPT2LMHeadModel",
        {
            "norm": "layernorm",
            "positions": "learned",
            "activation": "gelu_tanh",
            "gated": False,
            "qk_norm": "none",
            "qkv_bias": True,
            "attention_output_bias": True,
            "ffn_bias": True,
            "norm_bias": True,
        },
        {
            "vocab_size": "vocab_size",
            "num_layers": "n_layer",
            "d_model": "n_embd",
            "num_heads": "n_head",
            "d_ff": "n_inner",
            "max_seq_len": "n_positions",
            "norm_eps": "layer_norm_epsilon",
            "tie_embeddings": "tie_word_embeddings",
            "init_std": "initializer_range",
        },
        {"activation_function": "gelu_new", "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        {
            "embedding": "wte",
            "position_embedding": "wpe",
            "final_norm": "ln_f",
            "blocks.{i}.attention_norm": "h.{i}.ln_1",
            "blocks.{i}.ffn_norm": "h.{i}.ln_2",
            "blocks.{i}.attention.output": "h.{i}.attn.c_proj",
            "blocks.{i}.ffn.up": "h.{i}.mlp.c_fc",
            "blocks.{i}.ffn.down": "h.{i}.mlp.c_proj",
        },
        transposed=frozenset({"attention.query", "attention.key", "attention.value", "attention.output", "ffn.up", "ffn.down"}),
        fused=(("h.{i}.attn.c_attn", ("blocks.{i}.attention.query", "blocks.{i}.attention.key", "blocks.{i}.attention.value")),),
        prefix="transformer.",
    ),
)


def family_of(config: ModelConfig) -> Family | None:
    """The Hugging Face family with exactly these features, None if there is none."""
    for family in FAMILIES:
        fits = all(getattr(config, name) == value for name, value in family.features.items())
        if family.model_type == "gpt2":
            fits = fits and config.num_kv_heads == config.num_heads and config.head_dim * config.num_heads == config.d_model
        if fits:
            return family
    return None


def save_pretrained(
    model: Transformer, directory: Path, dtype: torch.dtype = torch.float32, bos_id: int | None = None, eos_id: int | None = None
) -> str:
    """Write `config.json`, `generation_config.json` and `model.safetensors`.

    Returns:
        the `model_type` written: a Hugging Face family, or "lmlab" when none has the model's features.
    """
    family = family_of(model.config)
    tokens = {key: value for key, value in (("bos_token_id", bos_id), ("eos_token_id", eos_id)) if value is not None}
    weights = {name: tensor.detach().to(dtype).cpu() for name, tensor in model.named_parameters()}
    if family is None:
        settings = {"model_type": NATIVE, "lmlab": model.config.model_dump(), **tokens}
    else:
        settings = _hf_settings(model.config, family) | {"dtype": str(dtype).removeprefix("torch."), **tokens}
        weights = _to_hf(weights, family, model.config)
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_file(directory / "model.safetensors") as file:
        file.write(save({name: tensor.contiguous() for name, tensor in weights.items()}, metadata={"format": "pt"}))
    write_json(directory / "generation_config.json", tokens)
    write_json(directory / "config.json", settings)
    return str(settings["model_type"])


def load_pretrained(directory: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Transformer:
    """Read a Hugging Face directory of a known family, or one in lmlab's own format.

    Raises:
        UserError: a file is missing, the family is unknown, or its configuration asks for what lmlab does not have.
        LmlabError: tensors that are missing, unexpected or mis-shaped, all named at once.
    """
    config_path, weights_path = directory / "config.json", directory / "model.safetensors"
    if not config_path.exists():
        raise UserError(f"'{directory}' is not a model directory (config.json is missing).")
    if not weights_path.exists():
        raise UserError(f"'{directory}' holds no model.safetensors.")
    settings = read_json(config_path)
    if not isinstance(settings, dict):
        raise UserError(f"'{config_path}' does not hold a mapping.", "Copy or export the model again.")
    try:
        weights = load_file(weights_path)
    except SafetensorError as error:
        raise LmlabError(f"'{weights_path}' is damaged ({error}).", "Copy or export the model again.") from None
    model_type = settings.get("model_type")
    if model_type == NATIVE:
        config = validate(ModelConfig, settings.get("lmlab", {}), f"'{config_path}'")
    else:
        family = next((family for family in FAMILIES if family.model_type == model_type), None)
        if family is None:
            known = [family.model_type for family in FAMILIES]
            raise UserError(f"'{config_path}': the model type '{model_type}' is not supported. {did_you_mean(str(model_type), known)}")
        config = _from_hf_settings(settings, family, config_path)
        weights = _from_hf(weights, family, config)
    with torch.device("meta"):
        model = Transformer(config)
    assign_weights(model, {name: tensor.to(device, dtype) for name, tensor in weights.items()}, str(weights_path))
    return model.eval()


def assign_weights(model: Transformer, weights: Tensors, where: str) -> None:
    """Give a model (on the meta device) its weights; every missing, unexpected and mis-shaped tensor is named in one error."""
    own = dict(model.named_parameters())
    problems = [f"missing {name}" for name in own if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in own]
    problems += [
        f"{name} has shape {list(tensor.shape)}, not {list(own[name].shape)}"
        for name, tensor in weights.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if problems:
        raise LmlabError(f"'{where}' does not fit its configuration: " + "; ".join(sorted(problems)) + ".")
    model.load_state_dict({**weights}, strict=True, assign=True)


def _hf_settings(config: ModelConfig, family: Family) -> dict[str, Any]:
    settings = {theirs: getattr(config, ours) for ours, theirs in family.keys.items()}
    settings |= {"architectures": [family.architecture], "model_type": family.model_type, **family.constants}
    if config.positions == "rotary":
        settings["rope_theta"] = config.rope_theta
        settings["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}
    return settings


def _from_hf_settings(settings: dict[str, Any], family: Family, path: Path) -> ModelConfig:
    scaling = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        raise UserError(f"'{path}': rotary scaling '{scaling}' is not supported.")
    for key, value in family.constants.items():
        if isinstance(value, str | bool) and settings.get(key, value) != value:
            raise UserError(f"'{path}': {key} = {settings[key]} is not supported for {family.model_type}.")
    data = {ours: settings[theirs] for ours, theirs in family.keys.items() if settings.get(theirs) is not None}
    if "rotary" in family.features.values():
        data["rope_theta"] = scaling.get("rope_theta", settings.get("rope_theta", 10_000.0))
    return validate(ModelConfig, {**family.features, "tie_embeddings": family.model_type == "gpt2", **data}, f"'{path}'")


def _rename(name: str, table: dict[str, str]) -> str | None:
    """Translate `stem.weight` or `stem.bias` by a table whose stems may hold one layer number `{i}`."""
    stem, _, kind = name.rpartition(".")
    number = re.search(r"\.(\d+)\.", f".{stem}.")
    key = re.sub(r"(^|\.)\d+\.", r"\1{i}.", stem, count=1) if number else stem
    target = table.get(key)
    return None if target is None else f"{target.replace('{i}', number[1] if number else '')}.{kind}"


def _to_hf(weights: Tensors, family: Family, config: ModelConfig) -> Tensors:
    result: Tensors = {}
    weights = dict(weights)
    if (head := weights.pop("head.weight", None)) is not None:
        result["lm_head.weight"] = head
    for theirs, ours in family.fused:
        for layer in range(config.num_layers):
            for kind in ("weight", "bias"):
                parts = [_oriented(name := f"{part.format(i=layer)}.{kind}", weights.pop(name), family) for part in ours]
                result[f"{family.prefix}{theirs.format(i=layer)}.{kind}"] = torch.cat(parts, -1)
    for name, tensor in weights.items():
        renamed = _rename(name, family.names)
        assert renamed is not None, name
        result[family.prefix + renamed] = _oriented(name, tensor, family)
    return result


def _from_hf(weights: Tensors, family: Family, config: ModelConfig) -> Tensors:
    result: Tensors = {}
    weights = {name.removeprefix(family.prefix): tensor for name, tensor in weights.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))}
    head = weights.pop("lm_head.weight", None)
    if head is not None and not config.tie_embeddings:
        result["head.weight"] = head
    for theirs, ours in family.fused:
        for layer in range(config.num_layers):
            for kind in ("weight", "bias"):
                fused = weights.pop(f"{theirs.format(i=layer)}.{kind}", None)
                if fused is not None:
                    for part, tensor in zip(ours, fused.chunk(len(ours), -1), strict=True):
                        name = f"{part.format(i=layer)}.{kind}"
                        result[name] = _oriented(name, tensor, family)
    inverse = {theirs: ours for ours, theirs in family.names.items()}
    for name, tensor in weights.items():
        renamed = _rename(name, inverse) or name
        result[renamed] = _oriented(renamed, tensor, family)
    return result


def _oriented(name: str, tensor: Tensor, family: Family) -> Tensor:
    stem, _, kind = name.rpartition(".")
    return tensor.t() if kind == "weight" and stem.endswith(tuple(family.transposed)) else tensor
