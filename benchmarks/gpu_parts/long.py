"""Training steps on one packed row of 32K to 128K tokens, every block computed again in the backward pass.

The documents' sizes vary about 4K tokens, or the row is one document, beside `transformers` with gradient checkpointing
on the same row as one document (it has no packed rows that its fused attention takes without a further package). Its
loss holds the logits of the whole row, and where that does not fit, the row says so. Utilization is as in `train`;
attention counts by the squares of the documents' sizes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gpu_parts.session import Session
from gpu_parts.shapes import documents, rows, shape
from gpu_parts.train import measure_peak, ours, theirs, utilization
from lmlab.models import ModelConfig

_CASES = ((32_768, True), (131_072, True), (32_768, False), (65_536, True), (65_536, False), (131_072, False))
_MEAN = 4096
_TABLE = "long rows, 1B, bf16, recomputing"


def run(session: Session) -> None:
    """Packed rows first."""
    measure_peak(session)
    found: dict[int, float] = {}
    for length, packed in _CASES[:3] if session.tiny else _CASES:
        length, mean = (256, 32) if session.tiny else (length, _MEAN)
        config = shape("1B", session.tiny, max_seq_len=length)
        for name in ("lmlab",) if packed else ("lmlab", "transformers"):
            row: dict[str, Any] = {"tokens": length, "documents": 1, "contender": name}
            if not session.has(f"{name} {length} {'packed' if packed else 'whole'}", 12 * length / 32_768 + 5):
                continue
            with session.attempt(_TABLE, row):
                batch = rows(config, 1, length, session.device)
                if packed:
                    batch["document_ids"] = documents(1, length, mean, session.device)
                row["documents"] = int(batch["document_ids"].max()) + 1
                step = (ours if name == "lmlab" else theirs)(session, config, batch, True, False)
                took = session.median(step, 5.0, warmup=1, least=2)
                row |= {"ms": 1000 * took, "tokens/s": length / took}
                row |= utilization(session, _operations(config, batch["document_ids"]) / took)
                row["peak GiB"] = session.peak_gib()
                if not packed:
                    found[length] = length / took if name == "lmlab" else found.get(length, 0.0)
                    row["lmlab over it"] = found[length] * took / length if name != "lmlab" else ""
                session.record.row(_TABLE, row)
                del step


def _operations(config: ModelConfig, document_ids: Tensor) -> float:
    """Of a forward and a backward pass: every document counts by its own size."""
    sizes = torch.bincount(document_ids.flatten()).tolist()
    return sum(size * config.flops_per_token(size) for size in sizes)
