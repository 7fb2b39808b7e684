"""Models as GGUF files, for llama.cpp and what is built on it, by the `gguf` package.

GGUF's architectures fix what lmlab's features leave open, so that only models with exactly their features are written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmlab.errors import UserError, missing_extra
from lmlab.files import atomic_path, read_mapping
from lmlab.models.config import ModelConfig
from lmlab.models.formats.names import Layout
from lmlab.models.formats.settings import family_of
from lmlab.models.transformer import Transformer, named_tensors

_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_TYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
_FILE_TYPES = {"fp32": "ALL_F32", "fp16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
_Q8_BLOCK = 32  # numbers that share a scale
_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {_SPLIT % r"\p{N}{1,3}": "llama-bpe", _SPLIT % r"\p{N}": "qwen2"}
"""How a text is cut before pairs are merged, by the name that llama.cpp has for it."""


def write_gguf(
    model: Transformer, target: Path, dtype: str, tokenizer: Path | None = None, token_ids: dict[str, Any] | None = None
) -> str:
    """Write a model as one file.

    Arguments:
        dtype: of its matrices: fp32, fp16, bf16 or q8_0; norms and biases are in fp32. Matrices whose rows are no
            multiple of 32 are in fp16 where q8_0 was asked for.
        tokenizer: a directory with a `tokenizer.json`, which goes into the file; None for a file without one.
        token_ids: `bos_token_id`, `eos_token_id` and `pad_token_id`.

    Returns:
        the architecture.

    Raises:
        UserError: the model has features that no architecture written here has, or the tokenizer is of a kind that
            GGUF has no name for; or the `gguf` package is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise missing_extra("gguf", "Writing GGUF files") from None
    family = next((each for name in _ARCHITECTURES if (each := family_of(model.config, name)) is not None), None)
    if (problem := _problem(model.config)) or family is None or family.model_type not in _ARCHITECTURES:
        raise UserError(
            f"No GGUF file can hold this model: {problem or 'its features are those of no architecture written here'}.",
            f"lmlab writes {', '.join(_ARCHITECTURES)} with their own activation, full attention and plain rotary"
            " positions; write a Hugging Face directory, and let llama.cpp convert it.",
        )
    architecture, config = family.model_type, model.config
    parameters = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    layout = Layout(config, family, {name: tuple(each.shape) for name, each in parameters.items()})
    with atomic_path(target) as draft:
        writer = gguf.GGUFWriter(draft, architecture)
        _describe(writer, config, dtype)
        if tokenizer is not None:
            _add_tokenizer(writer, tokenizer, config.vocab_size, token_ids or {})
        names = gguf.get_tensor_name_map(
            next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), config.num_layers
        )
        for stored, tensor in _tensors(layout, parameters, architecture, config):
            name = names.get_name(stored, try_suffixes=(".weight", ".bias"))
            assert name is not None
            kind = gguf.GGMLQuantizationType[_type_of(tensor, dtype)]
            writer.add_tensor(name, gguf.quants.quantize(tensor.numpy().astype(np.float32), kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return architecture


def _problem(config: ModelConfig) -> str | None:
    """What of a configuration the file could not say, and a reader would take for something else."""
    if config.num_labels is not None:
        return "it gives scalars (num_labels)"
    if config.activation != "silu":
        return f"its activation is {config.activation}"
    if "sliding" in config.attention_kinds:
        return "it has sliding windows"
    if config.rope_scaling is not None:
        return f"its rotary positions are scaled ({config.rope_scaling.type})"
    if config.attention_output_bias or config.ffn_bias:
        return "it has biases after the attention or in the feed-forward network"
    return None


def _describe(writer: Any, config: ModelConfig, dtype: str) -> None:
    import gguf

    writer.add_name(f"lmlab {writer.arch}")
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[dtype]])
    if dtype == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)


def _tensors(
    layout: Layout, parameters: dict[str, Tensor], architecture: str, config: ModelConfig
) -> Iterator[tuple[str, Tensor]]:
    for stored in layout.shapes:
        tensor = layout.write(stored, parameters).to("cpu", torch.float32).contiguous()
        if architecture == "llama" and ".self_attn.q_proj." in stored:
            tensor = _interleave(tensor, config.num_heads)
        if architecture == "llama" and ".self_attn.k_proj." in stored:
            tensor = _interleave(tensor, config.num_kv_heads)
        yield stored, tensor


def _interleave(tensor: Tensor, heads: int) -> Tensor:
    """Rows of each head with the two halves of its rotated pairs side by side: GGUF's order for Llama."""
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2).contiguous()


def _type_of(tensor: Tensor, dtype: str) -> str:
    if tensor.dim() < 2:
        return "F32"
    return "F16" if dtype == "q8_0" and tensor.shape[-1] % _Q8_BLOCK else _TYPES[dtype]


def _add_tokenizer(writer: Any, directory: Path, vocab_size: int, token_ids: dict[str, Any]) -> None:
    """A byte-level BPE with its merges, special tokens and chat template."""
    import gguf

    path = directory / "tokenizer.json"
    found = read_mapping(path)
    model, cut = found.get("model") or {}, _pre_tokenizer(found)
    if model.get("type") != "BPE" or cut is None:
        raise UserError(
            f"'{path}': GGUF has no name that lmlab knows for the way in which this tokenizer cuts texts.",
            "Byte-level ones as those of GPT-2, SmolLM, Llama 3 and Qwen are written; let llama.cpp convert others.",
        )
    by_id = {number: token for token, number in model["vocab"].items()}
    added = _added_tokens(directory, found)
    if beyond := [each["content"] for number, each in added.items() if number >= vocab_size]:
        raise UserError(
            f"'{directory}': the token '{beyond[0]}' has an id beyond the model's vocabulary of {vocab_size}.",
            "Take the tokenizer that belongs to the model.",
        )
    tokens, types = [], []
    for number in range(vocab_size):
        if number in added:
            tokens.append(added[number]["content"])
            special = added[number].get("special")
            types.append(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
        elif number in by_id:
            tokens.append(by_id[number])
            types.append(gguf.TokenType.NORMAL)
        else:
            tokens.append(f"[PAD{number}]")
            types.append(gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in model["merges"]])
    ids = {text: number for number, text in enumerate(tokens)}
    for name in ("bos", "eos", "pad"):
        given = token_ids.get(f"{name}_token_id")
        first = given[0] if isinstance(given, list) and given else given
        if first is None:  # the configuration does not say it, but the tokenizer does
            first = ids.get(_named_tokens(directory).get(f"{name}_token", ""))
        if isinstance(first, int):
            getattr(writer, f"add_{name}_token_id")(first)
    writer.add_add_bos_token(_puts_begin(directory, found))
    if templates := _chat_templates(directory):
        writer.add_chat_template(templates)


def _added_tokens(directory: Path, found: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The added tokens by id: those of `tokenizer.json`, and those that only the files beside it name."""
    settings = _beside(directory, "tokenizer_config.json")
    if isinstance(decoder := settings.get("added_tokens_decoder"), dict):
        others = {int(number): each for number, each in decoder.items()}
    else:  # as written before version 4.34 of transformers
        named = set(_named_tokens(directory).values())
        others = {
            number: {"content": text, "special": text in named}
            for text, number in _beside(directory, "added_tokens.json").items()
        }
    return others | {each["id"]: each for each in found.get("added_tokens") or []}


def _named_tokens(directory: Path) -> dict[str, str]:
    """Special tokens by their names, such as `eos_token`, and by numbers those without one."""
    settings = _beside(directory, "special_tokens_map.json") | _beside(directory, "tokenizer_config.json")
    found: dict[str, str] = {}
    more = settings.get("additional_special_tokens") or []
    for name, value in [*settings.items(), *((str(number), each) for number, each in enumerate(more))]:
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str) and (name.endswith("_token") or name.isdigit()):
            found[name] = text
    return found


def _puts_begin(directory: Path, found: dict[str, Any]) -> bool:
    """Whether the tokenizer puts the begin token before every text."""
    begin = _named_tokens(directory).get("bos_token")
    if _beside(directory, "tokenizer_config.json").get("add_bos_token") is True:
        return True
    outer = found.get("post_processor") or {}
    parts = outer.get("processors", []) if outer.get("type") == "Sequence" else [outer]
    firsts = [part["single"][0] for part in parts if part.get("type") == "TemplateProcessing" and part.get("single")]
    return any(first.get("SpecialToken", {}).get("id") == begin for first in firsts)


def _beside(directory: Path, name: str) -> dict[str, Any]:
    return read_mapping(directory / name) if (directory / name).exists() else {}


def _pre_tokenizer(found: dict[str, Any]) -> str | None:
    """llama.cpp's name for the way in which a tokenizer cuts texts; None if it is another one."""
    outer = found.get("pre_tokenizer") or {}
    parts = outer.get("pretokenizers", []) if outer.get("type") == "Sequence" else [outer]
    kinds = [part.get("type") for part in parts]
    normalizer = (found.get("normalizer") or {}).get("type")
    if not kinds or kinds[-1] != "ByteLevel" or parts[-1].get("add_prefix_space"):
        return None
    plain = parts[-1].get("use_regex", True)
    if kinds == ["ByteLevel"] and plain and normalizer is None:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits") and plain and normalizer is None:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not plain and parts[0].get("behavior") == "Isolated":
        name = _SPLITS.get(str((parts[0].get("pattern") or {}).get("Regex")))
        return name if normalizer is None or (name == "qwen2" and normalizer == "NFC") else None
    return None


def _chat_templates(directory: Path) -> str | list[dict[str, str]] | None:
    """The template, or several by name, as `transformers` stores them: files go before `tokenizer_config.json`."""
    files = {path.stem: path for path in sorted((directory / "additional_chat_templates").glob("*.jinja"))}
    if (path := directory / "chat_template.jinja").exists():
        files["default"] = path
    if files:
        return [{"name": name, "template": path.read_text("utf-8")} for name, path in files.items()]
    path = directory / "tokenizer_config.json"
    found = read_mapping(path).get("chat_template") if path.exists() else None
    if isinstance(found, list):
        return [each for each in found if isinstance(each, dict) and {"name", "template"} <= each.keys()]
    return found if isinstance(found, str) else None


__all__ = ["write_gguf"]
