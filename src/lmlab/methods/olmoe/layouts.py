"""OLMoE checkpoints in the layouts of its training code: OLMo (branch of the paper) and OLMo-core, as safetensors.

Shapes: V vocabulary, D model width, E experts, F inner width of an expert.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from lmlab.config import validate
from lmlab.errors import LmlabError, UserError, reads
from lmlab.files import read_mapping, read_yaml, write_json, write_text
from lmlab.models import ModelConfig, MoEConfig, Transformer, named_tensors
from lmlab.models.formats.tensor_file import read_tensors

Kind = Literal["olmo", "olmo-core"]
_WEIGHTS = "model.safetensors"

_OLMO = {
    "embedding.weight": "transformer.wte.weight",
    "final_norm.weight": "transformer.ln_f.weight",
    "head.weight": "transformer.ff_out.weight",
    "attention_norm.weight": "transformer.blocks.{i}.attn_norm.weight",
    "ffn_norm.weight": "transformer.blocks.{i}.ff_norm.weight",
    "attention.query_norm.weight": "transformer.blocks.{i}.q_norm.weight",
    "attention.key_norm.weight": "transformer.blocks.{i}.k_norm.weight",
    "attention.output.weight": "transformer.blocks.{i}.attn_out.weight",
    "ffn.router.weight": "transformer.blocks.{i}.ffn.router.layer.weight",
    "ffn.down.weight": "transformer.blocks.{i}.ff_out.weight",
}
_CORE = {
    "embedding.weight": "embeddings.weight",
    "final_norm.weight": "lm_head.norm.weight",
    "head.weight": "lm_head.w_out.weight",
    "attention_norm.weight": "blocks.{i}.attention_norm.weight",
    "ffn_norm.weight": "blocks.{i}.feed_forward_norm.weight",
    "attention.query.weight": "blocks.{i}.attention.w_q.weight",
    "attention.key.weight": "blocks.{i}.attention.w_k.weight",
    "attention.value.weight": "blocks.{i}.attention.w_v.weight",
    "attention.output.weight": "blocks.{i}.attention.w_out.weight",
    "attention.query_norm.weight": "blocks.{i}.attention.q_norm.weight",
    "attention.key_norm.weight": "blocks.{i}.attention.k_norm.weight",
    "ffn.gate.weight": "blocks.{i}.feed_forward.w1.weight",
    "ffn.up.weight": "blocks.{i}.feed_forward.w3.weight",
    "ffn.down.weight": "blocks.{i}.feed_forward.w2.weight",
}


_NORM = 1.0  # the order of the norm that weights of experts are divided by: their sum
_UNSAID = frozenset(
    (
        "d_ff",
        "moe",
        "init",
        "output_init",
        "init_std",
        "load_balancing_loss",
        "router_z_loss",
        "experts_backend",
        "expert_choice_over",
        "shared_expert_combine",
    )
)
"""Fields that say how a model is trained or computed, or that have no effect."""


@reads("a model in a layout of OLMo")
def read_olmo(directory: str | Path, config: ModelConfig | None = None) -> Transformer:
    """Read a checkpoint of OLMo (`config.yaml`, `model.safetensors`) or OLMo-core (`config.json`, `model.safetensors`).

    Of OLMo-core both layouts of experts are read: of its dropless layer, and of its layer with capacities, whose gates
    and ups are transposed. Swapped gates and ups cannot be seen from shapes: look at the loss on real text after a
    conversion.

    Arguments:
        config: the shape; by default that of the directory's configuration.

    Raises:
        UserError: files are missing, or the configuration asks for what lmlab does not have.
        LmlabError: tensors that are missing, unexpected or mis-shaped, all at once.
    """
    directory = Path(directory)
    path = directory / _WEIGHTS
    if not path.exists():
        raise UserError(
            f"'{directory}' has no {_WEIGHTS}; other files of weights are pickles, which lmlab does not open.",
            "Save it as safetensors.",
        )
    tensors, _ = read_tensors(path, "Copy it again.")
    kind: Kind = "olmo" if any(name.startswith("transformer.") for name in tensors) else "olmo-core"
    if config is None:
        file = directory / ("config.yaml" if kind == "olmo" else "config.json")
        try:
            config = _olmo_config(file) if kind == "olmo" else _core_config(file)
        except (KeyError, TypeError, AttributeError) as error:
            lacks = f"lacks the key {error}" if isinstance(error, KeyError) else f"has a key of another kind ({error})"
            raise UserError(
                f"'{file}' is no configuration of {'OLMo' if kind == 'olmo' else 'OLMo-core'}: it {lacks}."
            ) from None
    with torch.device("meta"):
        model = Transformer(config)
    shapes = {name: tensor.shape for name, tensor in named_tensors(model).items()}
    expected = _expected(config, shapes, kind)
    if kind == "olmo-core" and config.moe is not None:
        tensors = _as_dropless(tensors, config.d_model, config.moe, transposed=_has_capacities(directory))
    problems = [f"missing {name}" for name in expected if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in expected]
    problems += [
        f"{name} has shape {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if problems:
        stored, wanted = (
            each.get(_table(kind)["embedding.weight"]) for each in ({n: t.shape for n, t in tensors.items()}, expected)
        )
        padded = stored is not None and wanted is not None and stored[0] > wanted[0]
        remedy = (
            f"The vocabulary is padded: set the size of the embedding to {stored[0]}."
            if stored is not None and padded
            else None
        )
        raise LmlabError(f"'{path}' does not fit its configuration: " + "; ".join(sorted(problems)) + ".", remedy)
    weights = {name: _read(name, config, kind, tensors.__getitem__) for name in shapes}
    model.load_state_dict({name: tensor.contiguous() for name, tensor in weights.items()}, assign=True)
    return model.eval()


def write_olmo(model: Transformer, directory: str | Path, kind: Kind = "olmo") -> None:
    """Write a model in one of the layouts: `model.safetensors`, and the configuration that `read_olmo` reads.

    Raises:
        UserError: the layout's configuration has no word for something that the model has.
    """
    directory = Path(directory)
    settings = _settings_of(model.config, kind)
    ours = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    tensors: dict[str, Tensor] = {}
    for layer in [*range(model.config.num_layers), None]:
        part = {name: tensor for name, tensor in ours.items() if _layer_of(name) == layer}
        tensors |= _write(part, model.config, layer, kind)
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, directory / _WEIGHTS)
    if kind == "olmo":
        write_text(directory / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
    else:
        write_json(directory / "config.json", settings)


def _settings_of(config: ModelConfig, kind: Kind) -> dict[str, Any]:
    """The configuration of a layout, which must say all that the model is."""
    settings = _olmo_settings(config) if kind == "olmo" else _core_settings(config)
    parse = _parse_olmo if kind == "olmo" else _parse_core
    read = parse(settings, f"the configuration of {kind}").model_dump()
    given = config.model_dump() | {"vocab_size": config.padded_vocab_size, "vocab_multiple": 1}
    lost = [name for name, value in given.items() if name not in _UNSAID and read[name] != value]
    if config.moe is None:
        lost += [] if config.d_ff == read["d_ff"] else ["d_ff"]
    else:
        moe = read["moe"] or {}
        lost += [f"moe.{name}" for name, value in given["moe"].items() if name not in _UNSAID and moe[name] != value]
    if lost:
        raise UserError(f"The layout {kind} has no word for this model's {', '.join(lost)}.", "Write hf instead.")
    return settings


def _olmo_settings(config: ModelConfig) -> dict[str, Any]:
    inner = config.d_ff if config.moe is None else config.moe.expert_hidden_size
    model: dict[str, Any] = {
        "vocab_size": config.padded_vocab_size,
        "embedding_size": config.padded_vocab_size,
        "n_layers": config.num_layers,
        "d_model": config.d_model,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "mlp_hidden_size": 2 * inner,
        "max_sequence_length": config.max_seq_len,
        "rope": True,
        "rope_theta": config.rope_theta,
        "layer_norm_type": "rms",
        "layer_norm_eps": config.norm_eps,
        "attention_layer_norm": config.qk_norm == "full",
        "include_bias": False,
        "weight_tying": False,
        "activation_type": "swiglu",
    }
    if config.moe is not None:
        model |= {"moe_num_experts": config.moe.num_experts, "moe_top_k": config.moe.top_k}
        model["moe_normalize_expert_weights"] = _NORM if config.moe.norm_topk_prob else None
    return {"model": model}


def _core_settings(config: ModelConfig) -> dict[str, Any]:
    block: dict[str, Any] = {
        "name": "moe_reordered_norm" if config.norm_position == "reordered" else "moe",
        "attention": {
            "n_heads": config.num_heads,
            "n_kv_heads": config.num_kv_heads,
            "rope": {"theta": config.rope_theta},
            "qk_norm": {} if config.qk_norm == "none" else {"name": "rms", "eps": config.norm_eps},
        },
        "layer_norm": {"name": "rms", "eps": config.norm_eps},
    }
    if config.moe is None:
        block["name"] = "reordered_norm" if config.norm_position == "reordered" else "default"
        block["feed_forward"] = {"hidden_size": config.d_ff}
    else:
        moe = config.moe
        block["feed_forward_moe"] = {
            "name": "dropless",
            "num_experts": moe.num_experts,
            "hidden_size": moe.expert_hidden_size,
            "router": {"top_k": moe.top_k, "normalize_expert_weights": _NORM if moe.norm_topk_prob else None},
        }
    model = {"vocab_size": config.padded_vocab_size, "n_layers": config.num_layers, "d_model": config.d_model}
    return {"model": {**model, "block": block}, "max_sequence_length": config.max_seq_len}


def _layer_of(name: str) -> int | None:
    found = re.match(r"blocks\.(\d+)\.", name)
    return None if found is None else int(found[1])


def _stem(name: str) -> str:
    return re.sub(r"^blocks\.\d+\.", "", name)


def _table(kind: Kind) -> dict[str, str]:
    return _OLMO if kind == "olmo" else _CORE


def _read(name: str, config: ModelConfig, kind: Kind, get: Callable[[str], Tensor]) -> Tensor:
    """One of our tensors."""
    layer, stem = _layer_of(name), _stem(name)
    if stem in _table(kind):
        return get(_table(kind)[stem].format(i=layer))
    if kind == "olmo" and stem.startswith("attention."):
        heads = [each * config.head_dim for each in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
        part = ("query", "key", "value").index(stem.split(".")[1])
        return get(f"transformer.blocks.{layer}.att_proj.weight").split(heads)[part]
    if kind == "olmo" and stem in ("ffn.up.weight", "ffn.gate.weight"):
        return get(f"transformer.blocks.{layer}.ff_proj.weight").chunk(2)[
            0 if stem == "ffn.up.weight" else 1
        ]  # up comes first
    moe = config.moe
    assert moe is not None, name
    if stem == "ffn.router.weight":
        return get(f"blocks.{layer}.feed_forward_moe.router.weight").view(moe.num_experts, config.d_model)
    prefix, (gate, up, down) = _expert_names(kind, layer)
    sizes = (moe.num_experts, moe.expert_hidden_size, config.d_model)
    if stem == "ffn.experts.gate_up":
        return torch.cat((get(prefix + gate).view(sizes), get(prefix + up).view(sizes)), 1)
    return get(prefix + down).view(sizes).transpose(1, 2)


def _write(ours: Mapping[str, Tensor], config: ModelConfig, layer: int | None, kind: Kind) -> dict[str, Tensor]:
    """The tensors of one layer, or of what is outside of layers."""
    by_stem = {_stem(name): tensor for name, tensor in ours.items()}
    found = {_table(kind)[stem].format(i=layer): tensor for stem, tensor in by_stem.items() if stem in _table(kind)}
    if kind == "olmo" and layer is not None:
        found[f"transformer.blocks.{layer}.att_proj.weight"] = torch.cat(
            [by_stem[f"attention.{part}.weight"] for part in ("query", "key", "value")]
        )
        if "ffn.up.weight" in by_stem:
            found[f"transformer.blocks.{layer}.ff_proj.weight"] = torch.cat(
                (by_stem["ffn.up.weight"], by_stem["ffn.gate.weight"])
            )
    if "ffn.experts.gate_up" in by_stem:
        prefix, (gate, up, down) = _expert_names(kind, layer)
        halves = by_stem["ffn.experts.gate_up"].chunk(2, 1)
        found |= {prefix + name: half.flatten(0, 1) for name, half in zip((gate, up), halves, strict=True)}
        found[prefix + down] = by_stem["ffn.experts.down"].transpose(1, 2).flatten(0, 1)
        if kind == "olmo-core":
            found[f"blocks.{layer}.feed_forward_moe.router.weight"] = by_stem["ffn.router.weight"].flatten()
    return found


def _expert_names(kind: Kind, layer: int | None) -> tuple[str, tuple[str, str, str]]:
    """Prefix, and the names of gate, up and down."""
    if kind == "olmo":
        return f"transformer.blocks.{layer}.ffn.experts.mlp.", ("w1", "v1", "w2")
    return f"blocks.{layer}.feed_forward_moe.experts.mlp.", ("w1", "w3", "w2")


def _has_capacities(directory: Path) -> bool | None:
    """Whether the experts are those of OLMo-core's layer with capacities (`name: default`); None where the
    configuration does not say.
    """
    if not (directory / "config.json").exists():
        return None
    found = read_mapping(directory / "config.json")
    moe = ((found.get("model", found).get("block") or {}).get("feed_forward_moe")) or {}
    return None if "name" not in moe else moe["name"] != "dropless"


def _as_dropless(
    tensors: Mapping[str, Tensor], d_model: int, moe: MoEConfig, transposed: bool | None
) -> dict[str, Tensor]:
    """Gates and ups as [E F, D], where they may be [E D, F]: by their shapes, or where D = F by what the configuration
    says.

    Raises:
        UserError: neither tells.
    """
    experts, inner = moe.num_experts, moe.expert_hidden_size
    found = dict(tensors)
    for name, tensor in tensors.items():
        if not re.search(r"feed_forward_moe\.experts\.mlp\.w[13]$", name) or tensor.shape != (experts * d_model, inner):
            continue
        if d_model == inner and transposed is None:
            remedy = "Set model.block.feed_forward_moe.name in config.json to 'dropless' or 'default'."
            raise UserError(
                f"{name}: experts are as wide as the model, so that shapes do not tell which layout they have.", remedy
            )
        if d_model != inner or transposed:
            found[name] = tensor.view(experts, d_model, inner).transpose(1, 2).reshape(experts * inner, d_model)
    return found


def _expected(config: ModelConfig, shapes: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """Names and shapes of all tensors of the layout."""
    with torch.device("meta"):
        empty = {name: torch.empty(shape) for name, shape in shapes.items()}
        found: dict[str, Tensor] = {}
        for layer in [*range(config.num_layers), None]:
            found |= _write(
                {name: tensor for name, tensor in empty.items() if _layer_of(name) == layer}, config, layer, kind
            )
    return {name: tensor.shape for name, tensor in found.items()}


def _olmo_config(path: Path) -> ModelConfig:
    return _parse_olmo(read_yaml(path), f"'{path}'")


def _parse_olmo(found: dict[str, Any], where: str) -> ModelConfig:
    model = found.get("model", found)
    refused = {
        "clip_qkv": None,
        "alibi": False,
        "rope": True,
        "include_bias": False,
        "layer_norm_type": "rms",
        "weight_tying": False,
    }
    problems = [f"{key} = {model[key]}" for key, value in refused.items() if key in model and model[key] != value]
    if problems:
        raise UserError(f"{where}: lmlab does not support " + "; ".join(problems) + ".")
    width, heads = model["d_model"], model["n_heads"]
    experts = model.get("moe_num_experts") or 0
    inner = (model.get("mlp_hidden_size") or model.get("mlp_ratio", 4) * width) // 2  # gate and up together
    data: dict[str, Any] = {
        "vocab_size": model.get("embedding_size") or model["vocab_size"],
        "num_layers": model["n_layers"],
        "d_model": width,
        "num_heads": heads,
        "num_kv_heads": model.get("n_kv_heads") or heads,
        "max_seq_len": model.get("max_sequence_length", 4096),
        "rope_theta": float(model.get("rope_theta", 10_000)),
        "norm_eps": model.get("layer_norm_eps", 1e-5),
        "qk_norm": "full" if model.get("attention_layer_norm") else "none",
        "tie_embeddings": False,
    }
    if experts:
        data |= {
            "ffn": "moe",
            "moe": {
                "num_experts": experts,
                "top_k": model.get("moe_top_k", 2),
                "expert_hidden_size": inner,
                "norm_topk_prob": _is_normed(model, "moe_normalize_expert_weights", where),
            },
        }
    else:
        data["d_ff"] = inner
    return validate(ModelConfig, data, where)


def _is_normed(settings: dict[str, Any], key: str, where: str) -> bool:
    """Whether weights of experts are divided by their sum, which is their norm of order 1."""
    if settings.get(key) not in (None, _NORM):
        raise UserError(f"{where}: lmlab does not support {key} = {settings[key]}.")
    return settings.get(key) is not None


@reads("a configuration of OLMo-core")
def _core_config(path: Path) -> ModelConfig:
    if not path.exists():
        raise UserError(f"'{path.parent}' has no config.json.")
    return _parse_core(read_mapping(path), f"'{path}'")


def _parse_core(found: dict[str, Any], where: str) -> ModelConfig:
    model = found.get("model", found)
    block = model["block"]
    attention, moe, norm = block["attention"], block.get("feed_forward_moe"), block.get("layer_norm") or {}
    reordered = str(block.get("name", "")).endswith("reordered_norm")
    data: dict[str, Any] = {
        "vocab_size": model["vocab_size"],
        "num_layers": model["n_layers"],
        "d_model": model["d_model"],
        "num_heads": attention["n_heads"],
        "num_kv_heads": attention.get("n_kv_heads") or attention["n_heads"],
        "max_seq_len": found.get("max_sequence_length", 4096),
        "rope_theta": float((attention.get("rope") or {}).get("theta", 500_000)),
        "norm_eps": norm.get("eps", 1e-5),
        "norm_position": "reordered" if reordered else "pre",
        "qk_norm": "full" if attention.get("qk_norm") else "none",
        "tie_embeddings": False,
    }
    if moe:
        router = moe.get("router") or {}
        data |= {
            "ffn": "moe",
            "moe": {
                "num_experts": moe["num_experts"],
                "top_k": router.get("top_k", 1),
                "norm_topk_prob": _is_normed(router, "normalize_expert_weights", where),
                "expert_hidden_size": moe["hidden_size"],
            },
        }
    else:
        data["d_ff"] = block["feed_forward"]["hidden_size"]
    return validate(ModelConfig, data, where)
