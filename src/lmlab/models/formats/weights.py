"""The weights of a model directory: safetensors in one file or several with an index, or a pickle where asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lmlab.errors import LmlabError, UserError
from lmlab.files import atomic_path, read_mapping, write_json
from lmlab.models.formats.names import Layout, Shape
from lmlab.models.formats.pickles import read_pickle

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLE, _PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


@dataclass(frozen=True)
class Stored:
    """What a checkpoint holds: `shapes` of its tensors, and how to `get` one."""

    where: str
    shapes: Mapping[str, Shape]
    get: Callable[[str], Tensor]


def open_weights(directory: Path, stack: ExitStack, allow_pickle: bool) -> Stored:
    """The tensors of a directory, from one file or several, opened but not read.

    Arguments:
        stack: closes the files.
        allow_pickle: also read `pytorch_model.bin`, with `weights_only`.

    Raises:
        UserError: there are none, or only a pickle that was not asked for.
        LmlabError: a file is missing or damaged.
    """
    if (directory / _INDEX).exists():
        return _open_files(directory, _shards(directory / _INDEX), stack)
    if (directory / _WEIGHTS).exists():
        return _open_files(directory, [_WEIGHTS], stack)
    pickled = [name for name in (_PICKLE, _PICKLE_INDEX) if (directory / name).exists()]
    if not pickled:
        raise UserError(f"'{directory}' holds no {_WEIGHTS}.")
    if not allow_pickle:
        remedy = "If you trust where it comes from: lmlab convert --allow-pickle SOURCE TARGET"
        raise UserError(f"'{directory}' holds its weights only as a pickle, which lmlab does not open unasked.", remedy)
    tensors: dict[str, Tensor] = {}
    for name in [_PICKLE] if pickled[0] == _PICKLE else _shards(directory / _PICKLE_INDEX):
        tensors |= read_pickle(directory / name, mmap=True)
    return Stored(str(directory), {name: tuple(tensor.shape) for name, tensor in tensors.items()}, tensors.__getitem__)


def _open_files(directory: Path, names: list[str], stack: ExitStack) -> Stored:
    shapes: dict[str, Shape] = {}
    files: dict[str, Any] = {}
    for name in names:
        try:
            file = stack.enter_context(safe_open(directory / name, "pt"))
        except SafetensorError as error:
            raise LmlabError(f"'{directory / name}' is damaged ({error}).", "Copy or export the model again.") from None
        for tensor in file.keys():  # noqa: SIM118 (not a mapping)
            shapes[tensor] = tuple(file.get_slice(tensor).get_shape())
            files[tensor] = file
    where = str(directory / names[0]) if len(names) == 1 else str(directory)
    return Stored(where, shapes, lambda name: files[name].get_tensor(name))


def _shards(index: Path) -> list[str]:
    found = read_mapping(index)
    names = sorted(set(found.get("weight_map", {}).values())) if isinstance(found, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise LmlabError(f"'{index}' is not an index of weights.", "Copy or export the model again.")
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        raise LmlabError(
            f"'{index.parent}' lacks {len(missing)} of {len(names)} files of weights: {', '.join(missing)}.",
            "Copy the model again.",
        )
    return names


def write_weights(
    directory: Path, layout: Layout, parameters: Mapping[str, Tensor], dtype: torch.dtype | None, max_shard_bytes: int
) -> None:
    """Write a model's tensors under the names of its layout, each file whole or not at all.

    Arguments:
        dtype: of the written weights; None keeps theirs.
        max_shard_bytes: weights beyond this are cut into several files with an index.
    """
    shards = list(_cut(layout, parameters, dtype, max_shard_bytes))
    names = (
        [_WEIGHTS]
        if len(shards) == 1
        else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    )
    for file, shard in zip(names, shards, strict=True):
        tensors = {name: layout.write(name, parameters).to("cpu", dtype).contiguous() for name in shard}
        with atomic_path(directory / file) as draft:
            save_file(tensors, draft, metadata={"format": "pt"})
            # the library makes it readable to its owner alone
            shutil.copymode(directory / "generation_config.json", draft)
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        total = sum(size for shard in shards for size in shard.values())
        write_json(directory / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    for stale in directory.glob("model*.safetensors*"):
        if stale.name not in names and not (stale.name == _INDEX and len(shards) > 1):
            stale.unlink()


def _cut(
    layout: Layout, parameters: Mapping[str, Tensor], dtype: torch.dtype | None, limit: int
) -> Iterator[dict[str, int]]:
    """Names and bytes of the tensors of each file."""
    width = (dtype or next(iter(parameters.values())).dtype).itemsize
    shard: dict[str, int] = {}
    for name, shape in (layout.shapes | layout.inert).items():
        size = width * int(torch.Size(shape).numel())
        if shard and sum(shard.values()) + size > limit:
            yield shard
            shard = {}
        shard[name] = size
    yield shard


def has_weights(directory: Path) -> bool:
    """Whether there are safetensors."""
    return any((directory / name).exists() for name in (_INDEX, _WEIGHTS))
