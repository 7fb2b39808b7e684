"""Log-probabilities of a frozen reference model, computed once and kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmlab.data import KTORows, PreferenceRows
from lmlab.files import atomic_file, sha256_json, write_json
from lmlab.hardware import select_device, select_dtype
from lmlab.models import Transformer, weights_fingerprint
from lmlab.progress import progress
from lmlab.train.tuning.preference import sequence_log_probs

_ROWS_A_FILE = 1024  # what a stop can cost; less would write many small files


def reference_log_probs(
    model: Transformer,
    rows: PreferenceRows | KTORows,
    directory: str | Path,
    *,
    batch_size: int = 8,
    device: str = "auto",
    precision: str = "auto",
) -> dict[str, NDArray[np.float32]]:
    """Log-probabilities of all rows under a reference model, by the names that rows have for them; see the argument
    `reference` of the rows.

    They are kept below `directory`, in a folder named by the weights, the configuration, the rows and the precision:
    what is there is read, what is missing (after an interruption, or because any of these changed) is computed.

    Arguments:
        model: the reference; it is moved to the device and used in evaluation mode.
        rows: the rows, without reference.
        directory: where the figures are kept.
        batch_size: rows at once.
        device, precision: as in `TrainerConfig`.
    """
    directory = Path(directory)
    place = select_device(device)
    dtype = select_dtype(precision, place)
    key = {
        "weights": weights_fingerprint(model),
        "config": model.config.model_dump(mode="json"),
        "rows": rows.fingerprint,
        "precision": str(dtype),
    }
    folder = directory / sha256_json(key)[:16]
    write_json(
        folder / "reference.json",
        {**key, "names": rows.reference_names, "rows_a_file": _ROWS_A_FILE, "num_rows": len(rows)},
    )
    was_training = model.training
    model.to(place).eval()
    parts = []
    try:
        with progress("reference", len(rows), "rows") as advance:
            for start in range(0, len(rows), _ROWS_A_FILE):
                count = min(_ROWS_A_FILE, len(rows) - start)
                path = folder / f"rows-{start:09d}.npy"
                part = _read(path, (count, len(rows.sides)))
                if part is None:
                    part = np.concatenate(
                        list(_compute(model, rows, range(start, start + count), batch_size, place, dtype))
                    )
                    with atomic_file(path) as file:
                        np.save(file, part)
                parts.append(part)
                advance(count)
    finally:
        model.train(was_training)
    found = np.concatenate(parts)
    return {name: found[:, column].copy() for column, name in enumerate(rows.reference_names)}


def _read(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """A whole part, or None where there is none."""
    try:
        part = np.load(path, allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return part if part.shape == shape and part.dtype == np.float32 else None


def _compute(
    model: Transformer, rows: Any, numbers: range, batch_size: int, device: torch.device, dtype: torch.dtype
) -> Iterator[NDArray[np.float32]]:
    """Log-probabilities [n, sides] of each batch."""
    autocast = nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
    for start in range(0, len(numbers), batch_size):
        batch = [rows[number] for number in numbers[start : start + batch_size]]
        columns = []
        for side in rows.sides:
            names = (f"{side}input_ids", f"{side}labels", f"{side}document_ids")
            arrays = (torch.from_numpy(np.stack([row[name] for row in batch])).to(device) for name in names)
            with torch.no_grad(), autocast:
                columns.append(sequence_log_probs(model, *arrays)[0].float().cpu().numpy())
        yield np.stack(columns, 1)
