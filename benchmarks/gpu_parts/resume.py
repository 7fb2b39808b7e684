"""A training that moves from the CPU to this device and back, beside one that stays on the CPU.

Each leg is a run of the trainer of its own in the same directory, which goes on from the checkpoint of the one before.
Losses in fp32 must be those of the CPU to 1e-4, relative, after every step; on this device alone, interrupted or not,
to 1e-5: sums whose order is not fixed differ in their last digits.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpu_parts.session import Session
from lmlab.data import Loader
from lmlab.models import ModelConfig, Transformer
from lmlab.train import Trainer, TrainerConfig, language_model_step
from lmlab.train.optimization.optimizer import OptimizerConfig
from lmlab.train.optimization.schedule import ScheduleConfig
from lmlab.train.steps.routing import routed

_TABLE = "a training that changes devices: losses against one that does not"
_ROWS, _LENGTH = 8, 128
_SMALL: dict[str, Any] = {"vocab_size": 512, "num_layers": 4, "d_model": 128, "num_heads": 4, "max_seq_len": 256}
_MOE = {"num_experts": 8, "top_k": 2, "expert_hidden_size": 64}


class _Rows:
    """Packed rows of a text that repeats itself, so that there is something to learn."""

    def __len__(self) -> int:
        return 64 * _ROWS

    def __getitem__(self, index: int) -> dict[str, Any]:
        draws = np.random.default_rng(index)
        ids = np.tile(draws.integers(0, 512, 16), _LENGTH // 16 + 1)[: _LENGTH + 1]
        documents = np.sort(draws.integers(0, 3, _LENGTH))
        return {"input_ids": ids[:-1], "labels": ids[1:], "document_ids": documents}


def run(session: Session) -> None:
    """A dense model and a mixture of experts."""
    here = str(session.device)
    for kind, changes in (("dense", {}), ("experts", {"ffn": "moe", "moe": _MOE})):
        if not session.has(f"resume {kind}", 15):
            continue
        config = ModelConfig(**_SMALL, num_kv_heads=2, **changes)
        with session.attempt(_TABLE, {"model": kind}), tempfile.TemporaryDirectory() as folder:
            stays = _train(config, Path(folder, "stays"), [("cpu", 9)])
            legs = [("cpu", 3), (here, 6), ("cpu", 9)]
            moves = _train(config, Path(folder, "moves"), legs)
            _compare(
                session,
                {"model": kind, "legs": " -> ".join(f"{name} to step {step}" for name, step in legs)},
                moves,
                stays,
                1e-4,
            )
            whole, parts = (
                _train(config, Path(folder, name), each)
                for name, each in (("whole", [(here, 6)]), ("parts", [(here, 3), (here, 6)]))
            )
            _compare(session, {"model": kind, "legs": f"{here} to step 3 -> {here} to step 6"}, parts, whole, 1e-5)


def _train(config: ModelConfig, directory: Path, legs: Sequence[tuple[str, int]]) -> list[float]:
    """The losses of all steps."""
    for device, steps in legs:
        settings = TrainerConfig(
            steps=steps,
            batch_size=_ROWS,
            precision="fp32",
            device=device,
            log_every=1,
            optimizer=OptimizerConfig(learning_rate=3e-3),
            schedule=ScheduleConfig(kind="constant", warmup_fraction=0),
        )
        directory.mkdir(exist_ok=True)
        loader = Loader(_Rows(), _ROWS, 0, shuffle=False)
        model = Transformer(config).initialize(0)
        Trainer(model, routed(language_model_step, config), loader, settings, directory).fit()
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def _compare(
    session: Session, row: dict[str, Any], found: list[float], expected: list[float], tolerance: float
) -> None:
    assert len(found) == len(expected), "a step is missing"
    error = max(abs(a / b - 1) for a, b in zip(found, expected, strict=True))
    session.check(_TABLE, {**row, "first loss": expected[0], "last loss": expected[-1]}, error, tolerance)
