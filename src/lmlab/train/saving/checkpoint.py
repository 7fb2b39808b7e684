"""Checkpoints: whole or absent, verified on load, no pickle, of any number of processes for any other.

A checkpoint is a directory `step-NNNNNNNN` with safetensors files, which PyTorch's distributed checkpointing writes
(each process the shards that it holds), and `state.json`: the step, the state of the loader, figures, and the hashes of
all files. It is written under another name and renamed when all of it is on the disk.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.distributed.tensor import DTensor

from lmlab.distributed import control_group, from_all, from_main, wait_for_all, world
from lmlab.errors import LmlabError, UserError, reads
from lmlab.files import read_json, sha256_file, write_json
from lmlab.models import named_tensors
from lmlab.models.lora.adapt import adapters
from lmlab.progress import console, with_unit
from lmlab.train.limits import is_disk_full
from lmlab.train.optimization.optimizer import Optimizers
from lmlab.train.saving.mirror import Mirror

_NAME = re.compile(r"step-(\d{8})")
_MODEL, _OPTIMIZER = "model.", "optimizer."

warnings.filterwarnings(
    "ignore", message="torch.distributed is disabled, unavailable or uninitialized"
)  # one process is no mishap


class DamagedCheckpoint(LmlabError):
    """A checkpoint's file is missing or is not what was written."""


class Checkpoints:
    """The checkpoints of one run. Every process has one, and all call the same methods in the same order.

    Arguments:
        directory: where they are, seen by all processes.
        keep: how many of the newest are kept; those that are pinned and the best one are kept too.
        best_by: name of the figure by which the checkpoint with the lowest value is the best; None for none.
        in_background: write while training goes on, from a copy of the state in memory.
        mirror: URL of a folder that gets a copy of each checkpoint, and from which they come back when `directory` is
            empty.
    """

    def __init__(
        self,
        directory: str | Path,
        keep: int = 2,
        best_by: str | None = None,
        in_background: bool = False,
        mirror: str | None = None,
    ) -> None:
        directory = Path(directory)
        self.directory, self.keep, self.best_by, self.in_background = directory, keep, best_by, in_background
        self._mirror = Mirror(mirror) if mirror else None
        self._group = control_group("checkpoints")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        if world().is_main:
            for left in directory.glob(".step-*.tmp"):  # by a process that was killed
                shutil.rmtree(left)

    def save(
        self, step: int, model: nn.Module, optimizers: Optimizers, state: Mapping[str, Any], *, pinned: bool = False
    ) -> None:
        """Write the checkpoint of `step`, and remove those that need not be kept; in the background if that is set.

        Raises:
            LmlabError: the disk is full. The checkpoints before it are whole.
        """
        self.wait()
        temporary = self.directory / f".step-{step:08d}.tmp"
        if world().is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        from_main(None)
        tensors = _named(saved_tensors(model), optimizers.state_tensors())
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        settings: dict[str, Any] = {
            "storage_writer": writer,
            "process_group": self._group,
            "no_dist": not dist.is_initialized(),
        }
        record = {"step": step, "pinned": pinned, "processes": world().size, **state}
        size = sum(each.numel() * each.element_size() for each in tensors.values()) // world().size
        with self._told_if_full(temporary, step, size):
            self._write(temporary, step, record, tensors, settings, size)

    def _write(
        self,
        temporary: Path,
        step: int,
        record: dict[str, Any],
        tensors: dict[str, Tensor],
        settings: dict[str, Any],
        size: int,
    ) -> None:
        if self.in_background:
            written = async_save(tensors, **settings)
            assert isinstance(written, Future)
            self._pending = self._thread.submit(self._finish_behind, temporary, step, record, written, size)
        else:
            save(tensors, **settings)
            self._finish(temporary, step, record, None)

    def _finish_behind(
        self, temporary: Path, step: int, record: dict[str, Any], written: Future[Any], size: int
    ) -> None:
        with self._told_if_full(temporary, step, size):
            self._finish(temporary, step, record, written)

    @contextmanager
    def _told_if_full(self, temporary: Path, step: int, size: int) -> Iterator[None]:
        """Say what a checkpoint needs where the disk has no room for it, and take away what was written of it."""
        try:
            yield
        except BaseException as error:  # what PyTorch's checkpointing raises is no Exception
            if not is_disk_full(error):
                raise
            free = shutil.disk_usage(self.directory).free
            shutil.rmtree(temporary, ignore_errors=True)
            whole = checkpoints(self.directory)
            kept = f"that of step {int(whole[-1].name.removeprefix('step-'))} is whole" if whole else "none was written"
            raise LmlabError(
                f"The disk of '{self.directory}' is full, or a limit on files is reached: the checkpoint of step {step}"
                f" needs {_size(size)}, {_size(free)} were free; {kept}.",
                "Free some space, lower trainer.keep_checkpoints, or move the run's directory to a larger disk, and run"
                " the same command again: it goes on from there.",
            ) from error

    def _finish(self, temporary: Path, step: int, record: dict[str, Any], written: Future[Any] | None) -> None:
        if written is not None:
            written.result()
        mine = [
            path
            for path in sorted(temporary.glob("*.safetensors"))
            if path.name.startswith(f"shard-{world().rank + 1:05d}-")
        ]
        for path in mine:
            _flush(path)
        hashes = [(path.name, sha256_file(path)) for path in mine]
        if dist.is_initialized():
            gathered: list[Any] = [None] * world().size
            dist.all_gather_object(gathered, hashes, group=self._group)
            hashes = [entry for part in gathered for entry in part]
        if world().is_main:
            write_json(temporary / "state.json", {**record, "files": dict(hashes)})
            path = self.directory / f"step-{step:08d}"
            shutil.rmtree(path, ignore_errors=True)
            os.replace(temporary, path)
            _flush(self.directory)
            self._retain()

    def _retain(self) -> None:
        states = _readable(checkpoints(self.directory))
        saved = list(states)  # a damaged one stays where it is: removing it is for the user
        kept = (
            set(saved[-self.keep :])
            | {path for path in saved if states[path].get("pinned")}
            | {best_of(states, self.best_by)}
        )
        for path in saved:
            if path not in kept:
                shutil.rmtree(path)
        if self._mirror is not None:
            self._mirror.update([path for path in saved if path in kept])

    def wait(self) -> None:
        """Go on when what is being written in the background has been written.

        Raises:
            OSError, LmlabError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def load_newest(self, model: nn.Module, optimizers: Optimizers) -> dict[str, Any] | None:
        """Restore the newest checkpoint that is whole, in place; return its state, or None if there is none at all.

        Damaged ones after it are set aside under another name, which is said.

        Raises:
            LmlabError: there are some, and none is whole; or it does not fit the model.
        """
        self.latest()
        names = [path.name for path in self.directory.iterdir()] if self.directory.is_dir() else []
        saved = [self.directory / name for name in sorted(from_main(names), reverse=True) if _NAME.fullmatch(name)]
        damaged: dict[Path, str] = {}
        for path in saved:
            try:
                state = load_checkpoint(path, model, optimizers)
            except DamagedCheckpoint as error:
                damaged[path] = error.message
                continue
            if world().is_main:
                for each, why in damaged.items():
                    aside = each.with_name(f"{each.name}.damaged")
                    shutil.rmtree(aside, ignore_errors=True)
                    os.replace(each, aside)
                    console.print(
                        f"{why} It is set aside as '{aside.name}'; training goes on from the checkpoint before it, of"
                        f" step {state['step']}.",
                        style="yellow",
                    )
            wait_for_all()
            return state
        if damaged:
            other = ", or remove them all to take those of the mirror" if self._mirror is not None else ""
            first = next(iter(damaged.values()))
            raise LmlabError(
                f"None of the {len(damaged)} checkpoints in '{self.directory}' is whole. {first}",
                f"Copy one back from elsewhere{other}; remove the folder to begin anew at step 0.",
            )
        return None

    def latest(self) -> Path | None:
        """The newest checkpoint, from the mirror if there is none here."""
        if world().is_main and self._mirror is not None and not checkpoints(self.directory):
            self._mirror.fetch_latest(self.directory)
        saved = from_main([str(path) for path in checkpoints(self.directory)])
        return Path(saved[-1]) if saved else None


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds of a model: everything, but of one with adapters not the frozen weights, which are those
    of its base.
    """
    tensors = named_tensors(model)
    if not adapters(model):
        return tensors
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in tensors.items() if name not in frozen}


def _readable(saved: list[Path]) -> dict[Path, dict[str, Any]]:
    """The states of those checkpoints that have one."""
    found = {}
    for path in saved:
        try:
            state = read_json(path / "state.json")
        except UserError:
            continue
        if isinstance(state, dict):
            found[path] = state
    return found


def best_of(states: Mapping[Path, Mapping[str, Any]], best_by: str | None) -> Path | None:
    """The checkpoint whose figure `best_by` is the lowest."""
    rated = [(state["figures"][best_by], path) for path, state in states.items() if best_by in state.get("figures", {})]
    return min(rated)[1] if rated else None


def checkpoints(directory: str | Path) -> list[Path]:
    """All finished checkpoints below `directory`, oldest first."""
    directory = Path(directory)
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name) and (path / "state.json").exists())


@reads("a checkpoint")
def load_checkpoint(path: str | Path, model: nn.Module, optimizers: Optimizers | None = None) -> dict[str, Any]:
    """Restore a model, and its optimizers if given, in place; return the saved state.

    Raises:
        LmlabError: a file is missing, damaged, or does not fit the model.
    """
    path = Path(path)
    state = verify_checkpoint(path)
    reader = HuggingFaceStorageReader(str(path))
    saved: dict[str, Any] = reader.read_metadata().state_dict_metadata
    own = saved_tensors(model)
    weights = {name.removeprefix(_MODEL): tuple(each.size) for name, each in saved.items() if name.startswith(_MODEL)}
    _check_fit(own, weights, str(path))
    wanted: dict[str, Tensor] = {_MODEL + name: tensor.detach() for name, tensor in own.items()}
    if optimizers is not None:
        for key, each in saved.items():
            if key.startswith(_OPTIMIZER):
                wanted[key] = _empty(optimizers.parameters, key.removeprefix(_OPTIMIZER), each, path)
    load(wanted, storage_reader=reader, process_group=control_group(), no_dist=not dist.is_initialized())
    if optimizers is not None:
        optimizers.load_state_tensors(
            {key.removeprefix(_OPTIMIZER): value for key, value in wanted.items() if key.startswith(_OPTIMIZER)}
        )
    return state


@reads("a checkpoint")
def verify_checkpoint(path: str | Path) -> dict[str, Any]:
    """Compare every file of a checkpoint with its hash; return its state. The processes share the work.

    Raises:
        DamagedCheckpoint: a file is missing or damaged.
    """
    path = Path(path)
    try:
        state: dict[str, Any] = read_json(path / "state.json")
    except UserError as error:
        raise DamagedCheckpoint(f"The checkpoint '{path}' is damaged: {error.message}", _remedy(path)) from None
    if not (isinstance(state, dict) and isinstance(state.get("step"), int) and isinstance(state.get("files"), dict)):
        raise DamagedCheckpoint(
            f"The checkpoint '{path}' is damaged: its state.json is not what was written.", _remedy(path)
        )
    names = sorted(state["files"])[world().rank :: world().size]
    damaged = [name for name in names if not (path / name).exists() or sha256_file(path / name) != state["files"][name]]
    for name in (name for part in from_all(damaged) for name in part):
        raise DamagedCheckpoint(f"The checkpoint file '{path / name}' is damaged or missing.", _remedy(path))
    return state


def _size(count: int) -> str:
    return with_unit(count, "B")


def _remedy(path: Path) -> str:
    return f"Remove '{path}' and run again: the checkpoint before it is taken."


def whole_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors, of one with adapters those that are trained, put together from all processes in the main
    process's memory; empty in the others.

    All must call it.
    """
    whole = {}
    for name, tensor in saved_tensors(model).items():
        full = tensor.detach()
        full = full.full_tensor() if isinstance(full, DTensor) else full
        if world().is_main:
            whole[name] = full.cpu()
    return whole


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Copy weights into the model; every missing, unexpected and mis-shaped tensor is named in one error."""
    own = saved_tensors(model)
    _check_fit(own, {name: tuple(tensor.shape) for name, tensor in weights.items()}, where)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])


def _check_fit(own: Mapping[str, Tensor], weights: Mapping[str, tuple[int, ...]], where: str) -> None:
    problems = [f"missing: {name}" for name in own.keys() - weights.keys()]
    problems += [f"unexpected: {name}" for name in weights.keys() - own.keys()]
    problems += [
        f"{name} has shape {list(weights[name])}, the model needs {list(own[name].shape)}"
        for name in own.keys() & weights.keys()
        if tuple(own[name].shape) != weights[name]
    ]
    if problems:
        raise LmlabError(f"'{where}' does not fit the model: " + "; ".join(sorted(problems)) + ".")


def _named(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = {_MODEL + name: tensor.detach() for name, tensor in weights.items()}
    return tensors | {_OPTIMIZER + name: tensor for name, tensor in state.items()}


def _empty(parameters: Mapping[str, Tensor], key: str, saved: Any, path: Path) -> Tensor:
    """Room for a saved tensor of the optimizer, spread over the processes as its parameter is."""
    parameter = parameters.get(key.rpartition(".")[0])
    if parameter is None:
        raise LmlabError(
            f"'{path}' holds the optimizer's state of '{key.rpartition('.')[0]}', which is not trained here.",
            "Keep optimizer.groups.",
        )
    dtype = saved.properties.dtype
    if tuple(saved.size) == tuple(parameter.shape):
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    return torch.empty(tuple(saved.size), dtype=dtype)


def _flush(path: Path) -> None:
    """Have the system write a file, or the entries of a directory, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
