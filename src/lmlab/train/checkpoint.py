"""Checkpoints: whole or absent, verified on load, no pickle.

A checkpoint is a directory `step-NNNNNNNN` with `model.safetensors`, `optimizer.safetensors` and `state.json` (step, loader state, hashes of the
other files). It is written under another name and renamed when all of it is on the disk.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmlab.errors import LmlabError
from lmlab.files import atomic_directory, read_json, sha256_file, write_json
from lmlab.train.optimizer import Optimizers

_NAME = re.compile(r"step-(\d{8})")


def save_checkpoint(directory: Path, step: int, model: nn.Module, optimizers: Optimizers, state: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of `step` below `directory` and remove all but the newest `keep`; return its path."""
    path = directory / f"step-{step:08d}"
    with atomic_directory(path) as temporary:
        tensors = {"model": unique_tensors(model), "optimizer": optimizers.state_tensors() | {"rng.cpu": torch.get_rng_state()}}
        hashes = {}
        for name, values in tensors.items():
            file = temporary / f"{name}.safetensors"
            save_file({key: value.detach().contiguous().cpu() for key, value in values.items()}, file)
            hashes[file.name] = sha256_file(file)
        write_json(temporary / "state.json", {"step": step, "files": hashes, **state})
    for old in checkpoints(directory)[:-keep]:
        shutil.rmtree(old)
    return path


def checkpoints(directory: Path) -> list[Path]:
    """All finished checkpoints below `directory`, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name) and (path / "state.json").exists())


def load_checkpoint(path: Path, model: nn.Module, optimizers: Optimizers) -> dict[str, Any]:
    """Restore model, optimizer and random state in place; return the saved state.

    Raises:
        LmlabError: a file is missing, damaged, or does not fit the model.
    """
    state: dict[str, Any] = read_json(path / "state.json")
    for name, expected in state["files"].items():
        file = path / name
        if not file.exists() or sha256_file(file) != expected:
            raise LmlabError(
                f"The checkpoint file '{file}' is damaged or missing.",
                f"Remove '{path}' and run again: training goes on from the checkpoint before it.",
            )
    try:
        weights, rest = load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors")
    except SafetensorError as error:
        raise LmlabError(f"The checkpoint '{path}' cannot be read ({error}).", f"Remove '{path}' and run again.") from None
    load_weights(model, weights, str(path))
    torch.set_rng_state(rest.pop("rng.cpu"))
    optimizers.load_state_tensors(rest)
    return state


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and buffers by name, tied ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def load_weights(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Copy weights into the model; every missing, unexpected and mis-shaped tensor is named in one error."""
    own = unique_tensors(model)
    problems = [f"missing: {name}" for name in own.keys() - weights.keys()]
    problems += [f"unexpected: {name}" for name in weights.keys() - own.keys()]
    problems += [
        f"{name} has shape {list(weights[name].shape)}, the model needs {list(own[name].shape)}"
        for name in own.keys() & weights.keys()
        if own[name].shape != weights[name].shape
    ]
    if problems:
        raise LmlabError(f"'{where}' does not fit the model: " + "; ".join(sorted(problems)) + ".")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])
