"""Random model directories as `transformers` writes them, with the oddities of real ones."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from lmlab.models.formats import families

VOCAB, LENGTH = 50, 14
SMALL = {"vocab_size": VOCAB, "initializer_range": 0.2, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1}


@dataclass
class Drawn:
    """A directory and what is known of it.

    Attributes:
        config: of `transformers`.
        model: that was saved; None where only a refusal is right.
        notes: which oddities it has.
        refused: why it must be refused, if it must.
    """

    config: Any
    model: Any
    notes: list[str] = field(default_factory=list)
    refused: str | None = None


def draw_config(chance: random.Random, family: str) -> Any:
    """A configuration of a family, every feature on or off."""
    pick, flip = chance.choice, lambda share=0.5: chance.random() < share
    heads, kv = pick([(4, 4), (4, 2), (4, 1), (2, 1), (6, 3)])
    layers, head_dim = pick([1, 2, 3, 4]), pick([8, 16])
    common = SMALL | {
        "hidden_size": heads * head_dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": pick([24, 40]),
        "max_position_embeddings": pick([16, 48, 64]),
        "tie_word_embeddings": flip(),
        "hidden_act": pick(["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu"]),
        "rms_norm_eps": pick([1e-6, 1e-5, 1e-3]),
    }
    bias = {"attention_bias": flip(0.4)}
    own_width = {"head_dim": pick([8, 10, 16, 12])} if flip(0.4) else {}
    kinds = {"layer_types": [pick(["full_attention", "sliding_attention"]) for _ in range(layers)]} if flip() else {}
    window = {"sliding_window": pick([1, 3, 5, 13, 100])}
    rope = {"rope_parameters": draw_rope(chance)}
    gemma = {key: value for key, value in common.items() if key != "hidden_act"}
    gemma |= {"hidden_activation": common["hidden_act"], "head_dim": pick([8, 16]), **bias}
    gemma |= {"query_pre_attn_scalar": pick([4, 8, 37]), **window, **kinds}
    of_kinds = {"full_attention": draw_rope(chance), "sliding_attention": draw_rope(chance, 0.1)}
    experts = {"num_experts_per_tok": pick([2, 3]), "output_router_logits": False}
    settings: dict[str, dict[str, Any]] = {
        "llama": common | bias | rope | own_width | {"mlp_bias": flip(0.3)},
        "mistral": common | rope | {"head_dim": pick([8, 10])} | pick([window, {"sliding_window": None}]),
        "qwen2": common
        | rope
        | window
        | kinds
        | {"use_sliding_window": flip(0.7), "max_window_layers": pick([0, 1, 9])},
        "qwen3": common
        | bias
        | rope
        | window
        | kinds
        | {"head_dim": pick([8, 10]), "use_sliding_window": flip(0.7), "max_window_layers": pick([0, 1, 9])},
        "smollm3": common
        | bias
        | rope
        | kinds
        | {"mlp_bias": flip(0.3), "use_sliding_window": flip(0.7), **window}
        | pick([{}, {"no_rope_layer_interval": 2}, {"no_rope_layers": [pick([0, 1]) for _ in range(layers)]}]),
        "phi3": common
        | pick([window, {}])
        | {"rope_parameters": draw_longrope(chance, head_dim)}
        | {"original_max_position_embeddings": 8},
        "olmo": common | bias | rope | pick([{}, {"clip_qkv": 0.5}]),
        "olmo2": common | bias | rope,
        "olmo3": common | bias | window | kinds | {"rope_parameters": of_kinds},
        "granite": common
        | bias
        | rope
        | {
            "mlp_bias": flip(0.3),
            "embedding_multiplier": pick([1.0, 12.0]),
            "residual_multiplier": pick([1.0, 0.22]),
            "attention_multiplier": pick([1.0, 0.0625, 0.3]),
            "logits_scaling": pick([1.0, 8.0]),
        },
        "gemma": common | bias | rope | {"head_dim": pick([8, 16])},
        "gemma2": gemma
        | rope
        | {
            "final_logit_softcapping": pick([None, 5.0, 30.0]),
            "attn_logit_softcapping": pick([None, 2.0, 50.0]),
        },
        "gemma3_text": gemma | {"rope_parameters": of_kinds, "final_logit_softcapping": pick([None, 5.0])},
        "olmoe": common
        | bias
        | rope
        | experts
        | {"num_experts": pick([4, 5]), "norm_topk_prob": flip()}
        | pick([{}, {"clip_qkv": 0.5}]),
        "mixtral": common
        | rope
        | {"head_dim": pick([8, 10])}
        | experts
        | {"num_local_experts": pick([4, 5])}
        | pick([{}, window]),
        "qwen3_moe": common
        | bias
        | rope
        | experts
        | window
        | {
            "num_experts": pick([4, 5]),
            "head_dim": 8,
            "moe_intermediate_size": 20,
            "norm_topk_prob": flip(),
            "use_sliding_window": flip(),
        }
        | pick([{}, {"decoder_sparse_step": 2}, {"mlp_only_layers": [0]}]),
        "qwen2_moe": common
        | rope
        | experts
        | window
        | kinds
        | own_width
        | {
            "num_experts": pick([4, 5]),
            "moe_intermediate_size": 20,
            "shared_expert_intermediate_size": 0,
            "norm_topk_prob": flip(),
            "qkv_bias": flip(),
            "use_sliding_window": flip(),
            "max_window_layers": pick([0, 1, 9]),
        }
        | pick([{}, {"mlp_only_layers": [1]}]),
        "flex_olmo": common | bias | rope | experts | {"num_experts": pick([4, 5]), "norm_topk_prob": flip()},
        "gpt_neox": common
        | bias
        | {
            "rope_parameters": {**draw_rope(chance), "partial_rotary_factor": pick([0.25, 0.5, 1.0])},
            "use_parallel_residual": flip(),
            "hidden_size": heads * 16,
            "layer_norm_eps": pick([1e-5, 1e-3]),
        },
        "phi": {key: value for key, value in common.items() if key != "rms_norm_eps"}
        | {
            "rope_parameters": {**draw_rope(chance), "partial_rotary_factor": pick([0.25, 0.5, 1.0])},
            "hidden_size": heads * 16,
            "layer_norm_eps": pick([1e-5, 1e-3]),
            "qk_layernorm": flip(),
        },
        "gpt2": SMALL
        | {
            "n_embd": 32,
            "n_layer": layers,
            "n_head": 4,
            "n_positions": 64,
            "n_inner": pick([None, 40]),
            "tie_word_embeddings": flip(),
            "activation_function": common["hidden_act"],
        },
        "opt": SMALL
        | {
            "hidden_size": 32,
            "ffn_dim": 40,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "do_layer_norm_before": flip(0.7),
            "enable_bias": flip(),
            "tie_word_embeddings": flip(),
            "word_embed_proj_dim": 32,
            "pad_token_id": 1,
        },
    }
    settings["qwen3_moe"]["num_hidden_layers"] = max(2, layers)
    return transformers.AutoConfig.for_model(family, **settings[family])


FAMILIES = tuple(each.model_type for each in families.FAMILIES if each.features["causal"])
OTHERS = (
    "cohere",
    "stablelm",
    "falcon",
    "bloom",
    "mpt",
    "gptj",
    "gpt_neo",
    "starcoder2",
    "glm",
    "t5",
)


def draw_rope(chance: random.Random, share: float = 0.5) -> dict[str, Any]:
    """Rotary positions of any kind."""
    theta = {"rope_theta": chance.choice([500.0, 10_000.0, 5e5])}
    if chance.random() > share:
        return {"rope_type": "default", **theta}
    original = {"original_max_position_embeddings": chance.choice([8, 32])}
    kinds: list[dict[str, Any]] = [
        {"rope_type": "linear"},
        {"rope_type": "dynamic"},
        {"rope_type": "yarn", **original},
        {"rope_type": "yarn", **original, "beta_fast": 16.0, "truncate": False, "attention_factor": 1.2},
        {"rope_type": "yarn", **original, "mscale": 0.7, "mscale_all_dim": 0.9},
        {"rope_type": "llama3", **original, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ]
    return {**chance.choice(kinds), **theta, "factor": chance.choice([2.0, 3.5])}


def draw_longrope(chance: random.Random, head_dim: int) -> dict[str, Any]:
    """Phi-3's positions."""
    part = chance.choice([0.5, 1.0])
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": part}
    if chance.random() < 0.6:
        pairs = int(head_dim * part) // 2
        found |= {"rope_type": "longrope", "short_factor": [1 + 0.1 * i for i in range(pairs)]}
        found["long_factor"] = [1.5 + i for i in range(pairs)]
    return found


def draw_directory(seed: int, directory: Path, family: str | None = None, odd: bool = True) -> Drawn:
    """Write a random model directory, as `transformers` does or `odd`."""
    chance = random.Random(seed)
    family = family or chance.choice(FAMILIES)
    torch.manual_seed(seed)
    config = draw_config(chance, family)
    drawn = Drawn(config, perturbed(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")))
    drawn.model.save_pretrained(directory, max_shard_size=chance.choice(["5GB", "20KB"]))
    if odd and chance.random() < 0.4:
        old_keys(directory, drawn, chance)
    if odd and chance.random() < 0.4:
        odd_head(directory, drawn, chance)
    return drawn


def perturbed(model: Any) -> Any:
    """The model with every parameter, norms and biases included, far from where it started."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def edit_config(directory: Path, **changes: Any) -> None:
    """Change keys of `config.json`; None for a key that goes."""
    path = directory / "config.json"
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in found.items() if key not in changes or value is not None}))


def old_keys(directory: Path, drawn: Drawn, chance: random.Random) -> None:
    """Write the rotary positions as versions before 5 did, with the original length inside or beside the section."""
    rope = getattr(drawn.config, "rope_parameters", None)
    if not rope or "full_attention" in rope or drawn.config.model_type in ("gpt_neox", "phi3"):
        return
    rope = dict(rope)
    theta, part = rope.pop("rope_theta"), rope.pop("partial_rotary_factor", None)
    changes = {"rope_parameters": None, "rope_theta": theta}
    if part is not None:
        changes["partial_rotary_factor"] = part
    if rope["rope_type"] != "default":
        if chance.random() < 0.5 and "original_max_position_embeddings" in rope:
            changes["original_max_position_embeddings"] = rope.pop("original_max_position_embeddings")
            drawn.notes.append("original length beside the section")
        if chance.random() < 0.5:
            rope["type"] = rope.pop("rope_type")
        changes["rope_scaling"] = rope
    drawn.notes.append("older keys")
    edit_config(directory, **changes)


def odd_head(directory: Path, drawn: Drawn, chance: random.Random) -> None:
    """Make what the configuration says of the head untrue, or true in another way."""
    path = directory / "model.safetensors"
    embedding = {"gpt2": "transformer.wte", "opt": "model.decoder.embed_tokens", "gpt_neox": "gpt_neox.embed_in"}
    name = embedding.get(drawn.config.model_type, "model.embed_tokens") + ".weight"
    if not path.exists():
        return
    weights = load_file(path)
    head = "embed_out.weight" if drawn.config.model_type == "gpt_neox" else "lm_head.weight"
    if drawn.config.tie_word_embeddings:
        kind = chance.choice(["another head", "the same head", "the head alone"])
        weights[head] = weights[name].clone() if kind != "another head" else torch.randn_like(weights[name])
        if kind == "the head alone":
            del weights[name]
    else:
        kind = chance.choice(["called tied", "no head"])
        if kind == "called tied":
            edit_config(directory, tie_word_embeddings=True)
        elif head in weights:
            del weights[head]
            drawn.refused = "lacks its head"
    drawn.notes.append(kind)
    save_file(weights, path, metadata={"format": "pt"})


def random_ids(seed: int, rows: int = 3) -> torch.Tensor:
    """Token ids, [rows, LENGTH]."""
    return torch.randint(2, VOCAB, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))
