"""Encoders of the BERT family as rows of the table of `families`: every token sees its whole text, norms stand after
each sub-layer, positions are learned.

Their heads for pretraining are not read: what a checkpoint is used for is its hidden states.
"""

from __future__ import annotations

from lmlab.models.config import ModelConfig
from lmlab.models.formats.families.family import PLAIN, Family, Settings

_FEATURES: Settings = {
    **{key: value for key, value in PLAIN.items() if key not in ("token_types", "pooler")},
    "causal": False,
    "lm_head": False,
    "norm": "layernorm",
    "norm_bias": True,
    "norm_weight": True,
    "norm_position": "post",
    "embedding_norm": True,
    "qk_norm": "none",
    "positions": "learned",
    "gated": False,
    "ffn": "dense",
    "qkv_bias": True,
    "attention_output_bias": True,
    "ffn_bias": True,
    "tie_embeddings": True,
}
_KEYS = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "num_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "activation": "hidden_act",
    "norm_eps": "layer_norm_eps",
    "token_types": "type_vocab_size",
    "init_std": "initializer_range",
}
_DEFAULTS: Settings = {  # of their configurations, whose files may leave out what has its default
    "vocab_size": 30_522,
    "num_layers": 12,
    "d_model": 768,
    "num_heads": 12,
    "d_ff": 3072,
    "max_seq_len": 512,
    "activation": "gelu",
    "norm_eps": 1e-12,
    "token_types": 2,
}
_NAMES = {
    "embedding": "embeddings.word_embeddings",
    "position_embedding": "embeddings.position_embeddings",
    "token_type_embedding": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "blocks.{i}.attention.query": "encoder.layer.{i}.attention.self.query",
    "blocks.{i}.attention.key": "encoder.layer.{i}.attention.self.key",
    "blocks.{i}.attention.value": "encoder.layer.{i}.attention.self.value",
    "blocks.{i}.attention.output": "encoder.layer.{i}.attention.output.dense",
    "blocks.{i}.attention_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "blocks.{i}.ffn.up": "encoder.layer.{i}.intermediate.dense",
    "blocks.{i}.ffn.down": "encoder.layer.{i}.output.dense",
    "blocks.{i}.ffn_norm": "encoder.layer.{i}.output.LayerNorm",
    "pooler": "pooler.dense",
}
_DISTIL_NAMES = {
    "embedding": "embeddings.word_embeddings",
    "position_embedding": "embeddings.position_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "blocks.{i}.attention.query": "transformer.layer.{i}.attention.q_lin",
    "blocks.{i}.attention.key": "transformer.layer.{i}.attention.k_lin",
    "blocks.{i}.attention.value": "transformer.layer.{i}.attention.v_lin",
    "blocks.{i}.attention.output": "transformer.layer.{i}.attention.out_lin",
    "blocks.{i}.attention_norm": "transformer.layer.{i}.sa_layer_norm",
    "blocks.{i}.ffn.up": "transformer.layer.{i}.ffn.lin1",
    "blocks.{i}.ffn.down": "transformer.layer.{i}.ffn.lin2",
    "blocks.{i}.ffn_norm": "transformer.layer.{i}.output_layer_norm",
}
_CONSTANTS: Settings = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}


def _plain_heads(config: ModelConfig) -> bool:
    whole = config.head_dim * config.num_heads == config.d_model
    return whole and config.num_kv_heads == config.num_heads and config.num_labels is None


def _with_types(config: ModelConfig) -> bool:
    return _plain_heads(config) and config.token_types > 0


def _read_pooler(settings: Settings, data: Settings, problems: list[str]) -> None:
    data["pooler"] = True  # the file says whether: without its tensors there is none


def _read_roberta(settings: Settings, data: Settings, problems: list[str]) -> None:
    """Positions count from the row after that of padding, and the table's length includes those before."""
    _read_pooler(settings, data, problems)
    padding = settings.get("pad_token_id")
    data["position_offset"] = offset = 2 if padding is None else padding + 1
    data["max_seq_len"] = settings.get("max_position_embeddings", 512) - offset


def _write_roberta(config: ModelConfig) -> Settings:
    offset = config.position_offset
    return {"max_position_embeddings": config.max_seq_len + offset, "pad_token_id": offset - 1}


def _roberta(model_type: str, base: str) -> Family:
    return Family(
        model_type,
        base,
        None,
        "",
        _FEATURES,
        _KEYS,
        _DEFAULTS,
        _CONSTANTS,
        _NAMES,
        renamed={"roberta.": ""},
        unread=("lm_head.",),
        read=_read_roberta,
        write=_write_roberta,
        fits=lambda config: _with_types(config) and config.position_offset > 0,
    )


ENCODERS = (
    Family(
        "bert",
        "BertModel",
        None,
        "",
        {**_FEATURES, "position_offset": 0},
        {**_KEYS, "max_seq_len": "max_position_embeddings"},
        _DEFAULTS,
        _CONSTANTS,
        _NAMES,
        renamed={"bert.": ""},
        unread=("cls.",),
        read=_read_pooler,
        fits=_with_types,
    ),
    _roberta("roberta", "RobertaModel"),
    _roberta("xlm-roberta", "XLMRobertaModel"),
    Family(
        "distilbert",
        "DistilBertModel",
        None,
        "",
        {**_FEATURES, "position_offset": 0, "norm_eps": 1e-12, "token_types": 0, "pooler": False},
        {
            "vocab_size": "vocab_size",
            "num_layers": "n_layers",
            "d_model": "dim",
            "num_heads": "n_heads",
            "d_ff": "hidden_dim",
            "max_seq_len": "max_position_embeddings",
            "activation": "activation",
            "init_std": "initializer_range",
        },
        {**_DEFAULTS, "num_layers": 6},
        {},
        _DISTIL_NAMES,
        renamed={"distilbert.": ""},
        unread=("vocab_transform.", "vocab_layer_norm.", "vocab_projector."),
        fits=_plain_heads,
    ),
)
