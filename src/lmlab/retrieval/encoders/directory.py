"""Encoders from directories: those of sentence-transformers, plain models, and tables of static vectors.

Only safetensors and JSON are read; no code of a directory is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmlab.errors import UserError, reads
from lmlab.files import read_json, read_mapping
from lmlab.models.pooling import POOLING_MODES, PoolingMode
from lmlab.retrieval.encoders.bodies import Body, CoreBody, StaticBody, load_body
from lmlab.retrieval.encoders.encoder import Similarity, TextEncoder
from lmlab.retrieval.encoders.words import EncoderTokenizer

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "Tanh": nn.Tanh,
    "Identity": nn.Identity,
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
    "Sigmoid": nn.Sigmoid,
}
_SIMILARITIES: dict[str, Similarity] = {"cosine": "cosine", "dot": "dot", "dot_product": "dot"}
_OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_LONGEST = 1 << 20  # tokens: a table of vectors has no positions that could end


class Dense(nn.Module):
    """A dense layer after pooling."""

    def __init__(self, linear: nn.Linear, activation: nn.Module, residual: nn.Linear | bool | None) -> None:
        super().__init__()
        self.linear, self.activation = linear, activation
        self.residual = residual if isinstance(residual, nn.Linear) else nn.Identity() if residual else None

    def forward(self, vectors_BH: Tensor) -> Tensor:
        """Apply it."""
        found: Tensor = self.activation(self.linear(vectors_BH))
        return found if self.residual is None else found + self.residual(vectors_BH)


@reads("an encoder's directory")
def read_sentence_transformer(directory: Path, device: str) -> TextEncoder:
    """The encoder of a directory with `modules.json`.

    Raises:
        UserError: a module is of a kind that is not known here, or its files are missing or damaged.
    """
    settings = settings_of(directory / "config_sentence_transformers.json")
    if is_late(directory):
        raise UserError(
            f"'{directory}' compares every token of a query with every token of a document (late interaction).",
            "It serves `lmlab retrieval search` and `evaluate` with --by late, `lmlab poison craft` and `evaluate`.",
        )
    found: dict[str, Any] = {"normalize": False, "modes": ("mean",)}
    body: Body | None = None
    heads: list[nn.Module] = []
    for module in read_json(directory / "modules.json"):
        kind, folder = str(module["type"]).rpartition(".")[2], directory / str(module["path"])
        if found["normalize"] and kind in ("Dense", "LayerNorm", "Pooling"):
            raise UserError(f"'{directory}' normalizes before its module {kind}, which is not supported.")
        match kind:
            case "Transformer":
                body = load_body(folder, device)
                found |= read_transformer(folder, body)
            case "StaticEmbedding":
                body = StaticBody(_table(folder).to(device))
                found["max_length"] = _LONGEST
                found["tokenizer"] = EncoderTokenizer.load(folder, add_special=False)
            case "Pooling":
                found |= _pooling(folder)
            case "Normalize":  # has no parameters, so that its folder need not be there
                found["normalize"] = True
            case "Dense":
                heads.append(read_dense(folder).to(device))
            case "LayerNorm":
                heads.append(_layer_norm(folder).to(device))
            case "Dropout":
                pass  # means nothing after training
            case _:
                raise UserError(
                    f"'{directory}': the module '{module['type']}' is not supported.",
                    "Supported are Transformer, StaticEmbedding, Pooling, Dense, LayerNorm and Normalize.",
                )
    if body is None:
        raise UserError(f"'{directory / 'modules.json'}' names no Transformer and no StaticEmbedding.")
    similarity = _SIMILARITIES.get(str(settings.get("similarity_fn_name")))
    prompts = {name: text for name, text in (settings.get("prompts") or {}).items() if isinstance(text, str)}
    return TextEncoder(
        body,
        prompts=prompts,
        similarity=similarity or ("cosine" if found["normalize"] else "dot"),
        heads=tuple(head.eval().requires_grad_(False) for head in heads),
        truncate_dim=settings.get("truncate_dim"),
        name=directory.name,
        device=device,
        **found,
    ).variant(**_cosine(similarity, found["normalize"]))


def is_late(directory: Path) -> bool:
    """Whether a directory holds an encoder of late interaction."""
    if not (directory / "modules.json").exists():
        return False
    kinds = {str(module["type"]).rpartition(".")[2] for module in read_json(directory / "modules.json")}
    settings = settings_of(directory / "config_sentence_transformers.json")
    return settings.get("model_type") in ("ColBERT", "MultiVectorEncoder") or "MultiVectorMask" in kinds


def _cosine(similarity: Similarity | None, normalize: bool) -> dict[str, Any]:
    """Vectors of an encoder that compares by cosine get length 1 here, so that everywhere a dot product is it."""
    return {"normalize": True} if similarity == "cosine" and not normalize else {}


def read_transformer(folder: Path, body: Body) -> dict[str, Any]:
    """Tokenizer and longest text of a module Transformer."""
    settings = settings_of(folder / "sentence_bert_config.json")
    tokenizer = EncoderTokenizer.load(folder, lower=bool(settings.get("do_lower_case")))
    limits = [settings.get("max_seq_length"), body.max_positions]
    if not limits[0]:
        limits.append(settings_of(folder / "tokenizer_config.json").get("model_max_length"))
    return {"tokenizer": tokenizer, "max_length": int(min(limit for limit in limits if limit))}


def _pooling(folder: Path) -> dict[str, Any]:
    settings = read_mapping(folder / "config.json")
    modes = settings.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _OLD_MODES.items() if settings.get(key)] or ["mean"]
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    if unknown := [mode for mode in modes if mode not in POOLING_MODES]:
        raise UserError(f"'{folder / 'config.json'}': unknown pooling mode '{unknown[0]}'.")
    return {"modes": modes, "pool_prompt": settings.get("include_prompt", True) is not False}


def _weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    if not path.exists():
        raise UserError(f"'{folder}' has no model.safetensors.", "Save the encoder anew; pickled weights are not read.")
    return load_file(path)


def _table(folder: Path) -> Tensor:
    weights = _weights(folder)
    if "embedding.weight" in weights:
        return weights["embedding.weight"].float()
    table = weights["embeddings"].float()  # of model2vec, where several ids may share a row
    if "mapping" in weights:
        table = table[weights["mapping"].long()]
    return table * weights["weights"].float()[:, None] if "weights" in weights else table


def read_dense(folder: Path) -> nn.Module:
    """The layer of a module Dense."""
    settings, weights = read_mapping(folder / "config.json"), _weights(folder)
    name = str(settings.get("activation_function", "Tanh")).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise UserError(f"'{folder / 'config.json'}': unknown activation '{settings['activation_function']}'.")
    residual: nn.Linear | bool = bool(settings.get("use_residual"))
    if "residual.weight" in weights:
        residual = _linear(weights["residual.weight"], None)
    return Dense(_linear(weights["linear.weight"], weights.get("linear.bias")), _ACTIVATIONS[name](), residual)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.load_state_dict({"weight": weight.float(), **({} if bias is None else {"bias": bias.float()})})
    return layer


def _layer_norm(folder: Path) -> nn.Module:
    weights = _weights(folder)
    layer = nn.LayerNorm(len(weights["norm.weight"]))
    layer.load_state_dict({name.removeprefix("norm."): each.float() for name, each in weights.items()})
    return layer


def settings_of(path: Path) -> dict[str, Any]:
    """What a file of settings says; nothing where there is none."""
    return read_mapping(path) if path.exists() else {}


@reads("a model's directory")
def read_plain(
    directory: Path, device: str, pooling: PoolingMode | None, similarity: Similarity | None, prompts: dict[str, str]
) -> TextEncoder:
    """The encoder that a plain model makes: the family of BERT by its mean or first token, decoders by their last.

    Arguments:
        pooling: by default the mean, of decoders the last token (an end token is put after each text), of DPR the
            first.
        similarity: by default the cosine, of DPR the dot product.
    """
    from lmlab.models import read_settings

    body = load_body(directory, device)
    is_dpr = read_settings(directory).get("model_type") == "dpr"
    causal = isinstance(body, CoreBody) and bool(body.module.config.causal)
    mode: PoolingMode = pooling or ("cls" if is_dpr else "lasttoken" if causal else "mean")
    how: Similarity = similarity or ("dot" if is_dpr else "cosine")
    return TextEncoder(
        body,
        EncoderTokenizer.load(directory, end_token=causal and mode == "lasttoken"),
        modes=(mode,),
        normalize=how == "cosine",
        similarity=how,
        max_length=min(512, body.max_positions or 512),
        prompts=prompts,
        name=directory.name,
        device=device,
    )


def static_encoder(table_VD: Tensor, tokenizer: EncoderTokenizer, name: str = "static") -> TextEncoder:
    """Mean of vectors of tokens, normalized: linear before the norm, so that what is best for it can be known."""
    words = EncoderTokenizer(tokenizer.backend, tokenizer.special, tokenizer.lower, add_special=False)
    return TextEncoder(StaticBody(table_VD.detach().float()), words, max_length=_LONGEST, name=name)


def save_static(encoder: TextEncoder, directory: str | Path) -> None:
    """Write a static encoder as sentence-transformers reads it."""
    directory = Path(directory)
    from safetensors.torch import save_file

    from lmlab.files import write_json, write_text

    directory.mkdir(parents=True, exist_ok=True)
    table = encoder.embedding_matrix_VD.detach().cpu().contiguous()
    save_file({"embedding.weight": table}, directory / "model.safetensors")
    write_text(directory / "tokenizer.json", encoder.tokenizer.backend.to_str())
    kinds = [("0", "", "StaticEmbedding"), ("1", "1_Normalize", "Normalize")][: 1 + encoder.normalize]
    modules = [
        {"idx": int(idx), "name": idx, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for idx, path, kind in kinds
    ]
    write_json(directory / "modules.json", modules)


@torch.no_grad()
def save_encoder(encoder: TextEncoder, directory: str | Path) -> None:
    """Write an encoder of our own network as a directory that sentence-transformers reads too.

    Raises:
        UserError: its network is another's, or dense layers follow it.
    """
    directory = Path(directory)
    from lmlab.files import write_json, write_text
    from lmlab.models import save_pretrained

    if not isinstance(encoder.body, CoreBody) or encoder.heads:
        raise UserError(f"'{encoder.name}' is no encoder whose network can be written here.")
    save_pretrained(encoder.body.module, directory)
    write_text(directory / "tokenizer.json", encoder.tokenizer.backend.to_str())
    write_json(
        directory / "tokenizer_config.json", {**encoder.tokenizer.special, "model_max_length": encoder.max_length}
    )
    write_json(
        directory / "sentence_bert_config.json",
        {"max_seq_length": encoder.max_length, "do_lower_case": encoder.tokenizer.lower},
    )
    config = {"prompts": dict(encoder.prompts), "similarity_fn_name": encoder.similarity}
    write_json(directory / "config_sentence_transformers.json", config)
    width = encoder.embedding_matrix_VD.shape[1]
    pooling = {"word_embedding_dimension": width, **{key: mode in encoder.modes for key, mode in _OLD_MODES.items()}}
    write_json(directory / "1_Pooling" / "config.json", {**pooling, "include_prompt": encoder.pool_prompt})
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")][: 2 + encoder.normalize]
    modules = [
        {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for idx, (path, kind) in enumerate(kinds)
    ]
    write_json(directory / "modules.json", modules)
