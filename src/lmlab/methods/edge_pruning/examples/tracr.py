"""Programs that Tracr compiled to transformers (Lindner et al. 2023), as models of the core: their circuits are known.

A folder holds `config.json` (shapes, vocabulary), `weights.npz` and `cases.npz`; see `load_tracr`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.files import read_mapping
from lmlab.methods.edge_pruning.examples.examples import NONE, Examples
from lmlab.models import ModelConfig, Transformer

EMBEDDINGS = ("tok", "pos")


@dataclass(frozen=True)
class TracrProgram:
    """A compiled program: the model, its cases, and the edges of its circuits where they are known, by ablation."""

    model: Transformer
    examples: Examples
    ground_truth: dict[str, list[tuple[str, str]]]


def is_tracr(directory: str | Path) -> bool:
    """Whether a folder holds a compiled program."""
    directory = Path(directory)
    return (directory / "weights.npz").exists() and (directory / "config.json").exists()


def load_tracr(directory: str | Path) -> TracrProgram:
    """Read a compiled program.

    Raises:
        UserError: a file is missing or not what it should be.
    """
    directory = Path(directory)
    settings = read_mapping(directory / "config.json")
    weights, cases = (_arrays(directory / name) for name in ("weights.npz", "cases.npz"))
    try:
        model = _model(settings, weights)
        examples = _examples(settings, cases)
    except KeyError as error:
        raise UserError(f"'{directory}' lacks {error} of a compiled program.") from None
    truth = read_mapping(directory / "ground_truth.json") if (directory / "ground_truth.json").exists() else {}
    known = {
        key.removesuffix("_ablation"): [(a, b) for a, b in value["edges"]]
        for key, value in truth.items()
        if key.endswith("_ablation")
    }
    return TracrProgram(model, examples, known)


def _arrays(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"No such file: '{path}'.")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError) as error:
        raise UserError(f"'{path}' is not a file of arrays ({error}).") from None


def _model(settings: Mapping[str, Any], weights: Mapping[str, Any]) -> Transformer:
    vocab, width = weights["token_embed"].shape
    outputs, heads = settings["n_outputs"], settings["n_heads"]
    config = ModelConfig(
        vocab_size=max(vocab, outputs),
        num_layers=settings["n_layers"],
        d_model=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=settings["d_head"],
        d_ff=settings["d_mlp"],
        max_seq_len=len(weights["pos_embed"]),
        norm="none",
        positions="learned",
        causal=bool(settings["causal"]),
        activation=settings["activation"],
        gated=False,
        qkv_bias=True,
        attention_output_bias=True,
        ffn_bias=True,
        tie_embeddings=False,
    )
    model = Transformer(config)
    tensors: dict[str, Tensor] = {name: torch.zeros_like(each) for name, each in model.state_dict().items()}

    def put(name: str, value: Any) -> None:
        value = torch.from_numpy(np.asarray(value, np.float32))
        target = tensors[name]
        assert value.dim() == target.dim() and all(a <= b for a, b in zip(value.shape, target.shape, strict=True)), name
        target[tuple(slice(size) for size in value.shape)] = (
            value  # the vocabulary may be padded to the number of outputs, or the other way round
        )

    put("embedding.weight", weights["token_embed"])
    put("position_embedding.weight", weights["pos_embed"])
    put("head.weight", weights["unembed"].T)
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}.", f"blocks.{layer}."
        for part, name in (("query", "q"), ("key", "k"), ("value", "v")):
            put(f"{ours}attention.{part}.weight", weights[f"{theirs}{name}_w"].transpose(0, 2, 1).reshape(-1, width))
            put(f"{ours}attention.{part}.bias", weights[f"{theirs}{name}_b"].reshape(-1))
        put(f"{ours}attention.output.weight", weights[f"{theirs}o_w"].reshape(-1, width).T)
        put(f"{ours}attention.output.bias", weights[f"{theirs}o_b"])
        for part, name in (("up", "mlp_in"), ("down", "mlp_out")):
            put(f"{ours}ffn.{part}.weight", weights[f"{theirs}{name}_w"].T)
            put(f"{ours}ffn.{part}.bias", weights[f"{theirs}{name}_b"])
    model.load_state_dict(tensors)
    return model.eval()


def _examples(settings: Mapping[str, Any], cases: Mapping[str, Any]) -> Examples:
    """All positions but that of the begin token, which has no meaning."""
    clean, corrupted = (torch.from_numpy(cases[name]).long() for name in ("input_ids", "corrupted_ids"))
    positions = torch.arange(1, clean.shape[1]).expand(len(clean), -1).contiguous()
    none = torch.full((len(clean),), NONE)
    numerical = settings["output_kind"] != "categorical"
    return Examples(
        clean,
        corrupted,
        positions,
        torch.ones(positions.shape),
        none,
        none,
        tuple(range(settings["n_outputs"])),
        "mse" if numerical else "kl",
    )
