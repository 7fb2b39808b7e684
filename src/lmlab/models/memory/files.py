"""Files of memories: safetensors with the hashes of their sources and of the weights that they are for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lmlab.errors import LmlabError, UserError
from lmlab.files import atomic_file, parse_json
from lmlab.models.fingerprint import known_fingerprint
from lmlab.models.formats.tensor_file import read_tensors
from lmlab.models.memory.memory import Memory, Piece
from lmlab.models.memory.rows import EMPTY, KVRows
from lmlab.models.prompts.signing import UNTRUSTED, digest_of, is_own, mark_of
from lmlab.models.transformer import Transformer

_FORMAT = "lmlab memory 1"
T = TypeVar("T")


def stored_tensors(memory: Memory) -> dict[str, Tensor]:
    """What is written: of keys and values only slots that are not empty, head by head, as heads may hold unlike numbers
    of them.
    """
    tensors = dict(memory.tensors)
    if memory.rows is not None and not memory.rows.is_full:
        held = memory.rows.positions_LBKM >= 0
        tensors["keys"], tensors["values"] = memory.rows.keys_LBKMH[held], memory.rows.values_LBKMH[held]
    if memory.rows is not None:  # positions need no eight bytes
        tensors["positions"] = tensors["positions"].int()
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def save_memory(memory: Memory, path: Path | str, model: Transformer) -> None:
    """Write a memory for the weights of a model.

    Raises:
        UserError: it does not fit the model, or has numbers that are none.
    """
    memory = replace(memory, model_hash=memory.model_hash or known_fingerprint(model))
    memory.check(model)
    tensors = stored_tensors(memory)
    _refuse_nan(tensors, "The memory")
    about = {
        "format": _FORMAT,
        "model": memory.model_hash or "",
        "positions": str(memory.positions).lower(),
        "tokens": json.dumps(memory.tokens_B),
        "sources": json.dumps(memory.source_hash),
        "about": json.dumps(dict(memory.about), sort_keys=True),
    }
    about["mark"] = mark_of(digest_of(tensors, about))
    with atomic_file(Path(path)) as file:
        file.write(save(tensors, about))


def is_memory(path: Path | str) -> bool:
    """Whether a file is one of `save_memory`."""
    try:
        if not Path(path).is_file():  # a pipe would be waited for
            return False
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format") == _FORMAT
    except (SafetensorError, OSError, ValueError):  # too long for a path, as ids of texts may be
        return False


def load_memory(path: Path | str, model: Transformer, *, trust: bool = True) -> Memory:
    """Read a memory, onto the device of the model that it was made for.

    Arguments:
        trust: read what this user did not write on this machine, too: a memory can tell a model anything, unseen.

    Raises:
        UserError: there is no such file, it holds no memory, it was made for other weights, or others wrote it.
        LmlabError: it is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no memory '{path}'.")
    tensors, about = read_tensors(path, "Copy it again, or compress the text again.")
    if about.get("format") != _FORMAT:
        raise UserError(f"'{path}' holds no memory of lmlab.")
    if not trust and not is_own(digest_of(tensors, about), about.get("mark")):
        raise UserError(f"The memory '{path}' was not written by you on this machine.", UNTRUSTED)
    _refuse_nan(tensors, f"'{path}'")
    try:
        memory = _memory_of(tensors, about, model.embedding.weight.device)
        memory.require_whole()
    except (KeyError, ValueError, IndexError, RuntimeError, TypeError, AttributeError, LmlabError):
        raise LmlabError(f"'{path}' is damaged: its parts do not fit each other.", "Compress the text again.") from None
    try:
        memory.check(model)
    except UserError as error:
        raise UserError(f"'{path}': {error.message}", error.remedy) from None
    return memory


def _memory_of(tensors: dict[str, Tensor], about: dict[str, str], device: torch.device) -> Memory:
    pieces: list[Piece] = []
    while (name := f"pieces.{len(pieces)}") and (f"{name}.ids" in tensors or f"{name}.vectors" in tensors):
        x = tensors[f"{name}.ids" if f"{name}.ids" in tensors else f"{name}.vectors"]
        valid = tensors.get(f"{name}.valid")
        pieces.append(Piece(x.to(device), None if valid is None else valid.to(device)))
    rows = None
    if "keys" in tensors:
        if any(tensors[name].dtype not in (torch.int32, torch.int64) for name in ("positions", "next_position")):
            raise ValueError("positions that are no whole numbers")
        positions = tensors["positions"].long()
        keys, values = (_spread(tensors[name], positions) for name in ("keys", "values"))
        rows = KVRows(keys.to(device), values.to(device), positions.to(device), tensors["next_position"].to(device))
    tokens, sources, more = (parse_json(about[name], f"its {name}") for name in ("tokens", "sources", "about"))
    _all_of(str, list(more.values()))
    memory = Memory(
        rows,
        tuple(pieces),
        {"true": True, "false": False}[about["positions"]],
        _all_of(int, tokens),
        _all_of(str, sources),
        about["model"],
        more,
    )
    if tensors.keys() != memory.tensors.keys():
        raise ValueError("parts that belong to nothing")
    return memory


def _all_of(kind: type[T], told: Any) -> tuple[T, ...]:
    if not isinstance(told, list) or any(type(each) is not kind for each in told):
        raise ValueError(f"no list of {kind.__name__}")
    return tuple(told)


def _spread(held: Tensor, positions_LBKM: Tensor) -> Tensor:
    """Slots that were written without the empty ones, at their places."""
    if held.dim() == 5:
        return held
    spread = held.new_zeros(*positions_LBKM.shape, held.shape[1])
    spread[positions_LBKM != EMPTY] = held
    return spread


def _refuse_nan(tensors: dict[str, Tensor], what: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(f"{what} has values in '{name}' that are no numbers (NaN or infinite).")
