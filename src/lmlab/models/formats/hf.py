"""Models to and from Hugging Face directories: `config.json`, safetensors in one file or many, generation settings,
tokenizer.

A model whose features fit no family (`families`) is saved under lmlab's own names (`model_type: lmlab`).
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from lmlab.config import validate
from lmlab.errors import LmlabError, UserError, missing_extra, reads
from lmlab.files import read_mapping, write_json
from lmlab.models.config import ModelConfig
from lmlab.models.formats.families import FAMILIES
from lmlab.models.formats.families.family import Settings
from lmlab.models.formats.names import Layout, Shape
from lmlab.models.formats.settings import family_of, find_family, from_settings, to_settings
from lmlab.models.formats.weights import Stored, has_weights, open_weights, write_weights
from lmlab.models.transformer import Transformer, named_tensors

_log = logging.getLogger(__name__)

NATIVE = "lmlab"
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)


@reads("the directory of a model")
def from_pretrained(
    path: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    *,
    num_labels: int | None = None,
    seed: int = 0,
    allow_pickle: bool = False,
) -> Transformer:
    """Read a Hugging Face directory of a known family, a directory in lmlab's own format, or a GGUF file.

    Arguments:
        path: the directory, or a `.gguf` file (or a directory that holds nothing but one), which `transformers` reads.
        dtype: of the weights; None keeps that of the files.
        num_labels: give a language model a fresh scalar head with so many outputs in place of its own.
        seed: of the fresh head.
        allow_pickle: also read `pytorch_model.bin`, with `weights_only`.

    Returns:
        the model in evaluation mode.

    Raises:
        UserError: a file is missing, the family is unknown, its configuration asks for what lmlab does not have, or the
            weights are a pickle.
        LmlabError: tensors that are missing, unexpected or mis-shaped, all named at once by the names in the file; or
            damaged files.
    """
    path = Path(path)
    if (gguf := _find_gguf(path)) is not None:
        from lmlab.models.formats.gguf import read_gguf

        settings, tensors = read_gguf(gguf)
        config, layout = _layout(settings, gguf, num_labels)
        stored = Stored(str(gguf), {name: tuple(tensor.shape) for name, tensor in tensors.items()}, tensors.__getitem__)
        return _build(config, layout, stored, device, dtype, seed if num_labels is not None else None)
    settings = read_settings(path)
    config, layout = _layout(settings, path / "config.json", num_labels)
    with ExitStack() as stack:
        stored = open_weights(path, stack, allow_pickle)
        return _build(config, layout, stored, device, dtype, seed if num_labels is not None else None)


@reads("the directory of a model")
def from_pretrained_with(
    path: Path | str, beside: Collection[str], *, allow_pickle: bool = False
) -> tuple[Transformer, dict[str, Tensor]]:
    """Read a Hugging Face directory whose files hold tensors beside the model's, such as those of a method, in fp32.

    Arguments:
        beside: their names.
        allow_pickle: also read `pytorch_model.bin`, with `weights_only`.

    Returns:
        the model in evaluation mode, and those of the tensors that are there.

    Raises:
        UserError, LmlabError: as `from_pretrained`.
    """
    path = Path(path)
    config, layout = _layout(read_settings(path), path / "config.json", None)
    with ExitStack() as stack:
        stored = open_weights(path, stack, allow_pickle)
        found = {name: stored.get(name).float() for name in beside if name in stored.shapes}
        shapes = {name: shape for name, shape in stored.shapes.items() if name not in found}
        return _build(config, layout, Stored(stored.where, shapes, stored.get), "cpu", torch.float32, None), found


def save_pretrained(
    model: Transformer,
    directory: str | Path,
    dtype: torch.dtype | None = torch.float32,
    *,
    tokens: Mapping[str, Any] | None = None,
    companions: str | Path | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> str:
    """Write `config.json`, `generation_config.json` and safetensors, and carry a tokenizer along.

    Arguments:
        dtype: of the written weights; None keeps theirs.
        tokens: `bos_token_id`, `eos_token_id`, `pad_token_id` for both configurations.
        companions: a directory whose tokenizer, chat template and generation settings are copied; a GGUF file's
            tokenizer is converted.
        max_shard_bytes: weights beyond this are cut into several files with an index.

    Returns:
        the `model_type` written: a Hugging Face family, or "lmlab" when none has the model's features.
    """
    directory = Path(directory)
    companions = None if companions is None else Path(companions)
    family = family_of(model.config, model.read_as)
    directory.mkdir(parents=True, exist_ok=True)
    given = dict(tokens or {})
    token_ids, generation = ({}, {}) if companions is None else _copy_companions(companions, directory)
    parameters = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    if unknown := [name for name in parameters if "lora_" in name or name.endswith(".packed")]:
        raise ValueError(
            f"the model has adapters or packed weights ({unknown[0]}, ...); merge or remove adapters before it is"
            " saved, or read it in fp32 or bf16"
        )
    layout = Layout(model.config, family, {name: tuple(parameter.shape) for name, parameter in parameters.items()})
    write_json(directory / "generation_config.json", token_ids | generation | given)
    write_weights(directory, layout, parameters, dtype, max_shard_bytes)
    if family is None:
        settings: Settings = {"model_type": NATIVE, "lmlab": model.config.model_dump()}
    else:
        written = dtype or next(iter(parameters.values())).dtype
        settings = to_settings(model.config, family) | {"dtype": str(written).removeprefix("torch.")}
    write_json(directory / "config.json", dict.fromkeys(_TOKENS) | settings | token_ids | given)
    return str(settings["model_type"])


class _Settings(BaseModel):
    """The forms of the settings that any family has, as far as they are there; what they mean, families know."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model_type: str | None = None
    architectures: list[str] | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_theta: float | None = None
    vocab_size: int | None = Field(None, gt=0, lt=1 << 31)
    max_position_embeddings: int | None = Field(None, gt=0, lt=1 << 40)
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | list[int] | None = None
    id2label: dict[str, Any] | None = None
    quantization_config: dict[str, Any] | None = None


def read_settings(directory: str | Path) -> Settings:
    """The `config.json` of a model directory.

    Raises:
        UserError: there is none, or it does not hold a mapping.
    """
    directory = Path(directory)
    path = directory / "config.json"
    if not directory.is_dir():
        raise UserError(
            f"There is no model directory '{directory}'.",
            "Give the path of a local directory; lmlab downloads nothing by itself.",
        )
    if not path.exists():
        raise UserError(f"'{directory}' is not a model directory (config.json is missing).")
    settings = read_mapping(path)
    validate(_Settings, settings, f"'{path}'")
    return settings


@reads("the directory of a model")
def read_config(directory: str | Path) -> ModelConfig:
    """The shape of the model in a directory, or of a GGUF file.

    Raises:
        UserError: there is none, its family is unknown, or it has what lmlab does not.
    """
    directory = Path(directory)
    if (gguf := _find_gguf(directory)) is not None:
        from lmlab.models.formats.gguf import read_gguf_settings

        return _layout(read_gguf_settings(gguf), gguf, None)[0]
    config, layout = _layout(read_settings(directory), directory / "config.json", None)
    if config.tie_embeddings and has_weights(directory):
        with ExitStack() as stack:
            stored = open_weights(directory, stack, allow_pickle=False)
            names = {layout.canonical(name): name for name in stored.shapes}
            if _head_differs(config, layout, names, stored):
                return ModelConfig.model_validate(config.model_dump() | {"tie_embeddings": False})
    return config


def _layout(settings: Settings, path: Path, num_labels: int | None) -> tuple[ModelConfig, Layout]:
    if settings.get("model_type") == NATIVE:
        family, config = None, validate(ModelConfig, settings.get("lmlab", {}), f"'{path}'")
    else:
        family = find_family(settings, f"'{path}'")
        config = from_settings(settings, family, path)
    if num_labels is not None:
        config = ModelConfig.model_validate(config.model_dump() | {"num_labels": num_labels})
    return config, Layout(config, family, _shapes(config))


def _shapes(config: ModelConfig) -> dict[str, Shape]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in named_tensors(Transformer(config)).items()}


def _build(
    config: ModelConfig,
    layout: Layout,
    stored: Stored,
    device: torch.device | str,
    dtype: torch.dtype | None,
    head_seed: int | None,
) -> Transformer:
    layout.take_stacked(stored.shapes)
    names = {layout.canonical(name): name for name in stored.shapes}
    if head_seed is None and _head_differs(config, layout, names, stored):
        _log.warning(
            "'%s' says that the head is the embedding (tie_word_embeddings), but holds another (%s), which is kept.",
            stored.where,
            layout.head,
        )
        config = ModelConfig.model_validate(config.model_dump() | {"tie_embeddings": False})
        layout = Layout(config, layout.family, _shapes(config))
        layout.take_stacked(stored.shapes)
    if config.pooler and layout.family is not None and "pooler.dense.weight" not in names:
        # config.json does not say whether there is one
        config = ModelConfig.model_validate(config.model_dump() | {"pooler": False})
        layout = Layout(config, layout.family, _shapes(config))
    found = {name: stored.shapes[original] for name, original in names.items()}
    problems = layout.problems(found)
    if head_seed is not None:
        problems = [problem for problem in problems if problem != "missing score.weight"]
    if problems:
        rows = found.get(layout.locations["embedding.weight"].names[0], (0,))[0]
        remedy = f"The vocabulary is padded: set vocab_size to {rows}." if rows > config.vocab_size else None
        if problems == [f"missing {layout.head}"]:
            remedy = "If its head is the embedding, set tie_word_embeddings to true in config.json."
        raise LmlabError(f"'{stored.where}' does not fit its configuration: " + _some(problems) + ".", remedy)

    def get(name: str) -> Tensor:
        return stored.get(names[name])

    with torch.device("meta"):
        model = Transformer(config)
    weights = {}
    for name, location in layout.locations.items():
        if all(each in names for each in location.names):
            weights[name] = location.read(get).to(device, dtype).contiguous()
    fresh_head = "score.weight" not in weights and model.score is not None
    if fresh_head and model.score is not None:
        like = next(iter(weights.values()))
        weights["score.weight"] = torch.empty(model.score.weight.shape, dtype=like.dtype, device=device)
    # not strict: what is missing was named above, and experts that layers share are one tensor
    model.load_state_dict(weights, assign=True, strict=False)
    if fresh_head:
        model.initialize_parameter("score.weight", head_seed or 0)
    model.read_as = None if layout.family is None else layout.family.model_type
    return model.eval()


def _head_differs(config: ModelConfig, layout: Layout, names: dict[str, str], stored: Stored) -> bool:
    """Whether a file holds a head of its own although the configuration says that the embedding is the head.

    Where it holds the head alone, that is the embedding too, as in `transformers`.
    """
    head, embedding = layout.head, layout.locations["embedding.weight"].names[0]
    if not config.tie_embeddings or config.num_labels is not None or head not in names:
        return False
    if embedding not in names:
        names[embedding] = names.pop(head)
        return False
    if stored.shapes[names[head]] != stored.shapes[names[embedding]]:
        return True
    one, other = stored.get(names[head]), stored.get(names[embedding])
    wide = torch.promote_types(one.dtype, other.dtype)
    return not torch.equal(one.to(wide), other.to(wide))


def _some(problems: list[str], most: int = 12) -> str:
    """The first of a list that may have one entry for every layer of another model."""
    rest = len(problems) - most
    return "; ".join(problems[:most]) + (f"; and {rest} more" if rest > 0 else "")


def _copy_companions(source: Path, directory: Path) -> tuple[Settings, Settings]:
    """Copy the tokenizer; return the token ids of the source's configuration, and its generation settings."""
    if (gguf := _find_gguf(source)) is not None:
        from lmlab.models.formats.gguf import convert_tokenizer

        return convert_tokenizer(gguf, directory), {}
    if source.resolve() != directory.resolve():
        for name in _COMPANIONS:
            if (source / name).exists():
                shutil.copyfile(source / name, directory / name)
    settings, generation = read_settings(source), source / "generation_config.json"
    token_ids = {key: settings[key] for key in _TOKENS if settings.get(key) is not None}
    return token_ids, read_mapping(generation) if generation.exists() else {}


def _find_gguf(path: Path) -> Path | None:
    if path.suffix == ".gguf":
        if not path.exists():
            raise UserError(f"There is no file '{path}'.")
        return path
    if path.is_dir() and not (path / "config.json").exists():
        found = sorted(path.glob("*.gguf"))
        if len(found) > 1:
            raise UserError(
                f"'{path}' holds {len(found)} GGUF files: {', '.join(file.name for file in found)}.",
                "Name one of them.",
            )
        return found[0] if found else None
    return None


def compare_with_transformers(
    directory: str | Path, input_ids_BT: Tensor, ours: Tensor, *, hidden: bool = False
) -> float:
    """The largest difference of the logits that `transformers` computes from a saved directory, in fp32.

    Arguments:
        ours: our logits of the same ids, [B, T, V].
        hidden: compare final hidden states, [B, T, D], in place of logits, as encoders give.

    Raises:
        UserError: `transformers` is not installed.
    """
    directory = Path(directory)
    try:
        from transformers import AutoModel, AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError:
        raise missing_extra("transformers", "Comparing with transformers") from None
    logging.disable_progress_bar()
    auto = AutoModel if hidden else AutoModelForCausalLM
    # the fused kernels there leave the caps on scores out
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # shared experts without width
        theirs = auto.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        output = theirs(input_ids_BT)
        return float((ours - (output.last_hidden_state if hidden else output.logits)).abs().max())


__all__ = [
    "FAMILIES",
    "NATIVE",
    "compare_with_transformers",
    "family_of",
    "from_pretrained",
    "read_settings",
    "save_pretrained",
]
