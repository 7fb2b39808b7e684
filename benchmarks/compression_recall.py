"""Recall through memories: kinds that learn on the same task, from the same first weights, with equal slots and steps.

    python benchmarks/compression_recall.py results.json [--steps 600] [--seeds 3] [--slots 8] [--kinds summary ...]

Four pairs of keys and values stand in two segments of five tokens; only `slots` positions are left of them when the
four values are asked for. `summary` reads the segments one after the other and writes half of the vectors for each, as
the method does; the others read both at once. A model of two layers, 64 wide, learns all weights from scratch (batch
64, AdamW 3e-3). The figure is the share of 512 held-out values that are the likeliest token, every so many steps;
chance is 1/8. A killed run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmlab.methods.autocompressor.kinds.base import create
from lmlab.methods.autocompressor.kinds.trained import Trained
from lmlab.methods.autocompressor.training.recall import RecallRows, recall_compressor, recall_trainer
from lmlab.train import OptimizerConfig, ScheduleConfig, TrainerConfig, read_metrics

KINDS = ("summary", "icae", "kv_tokens", "bi_tokens", "meanpool", "anchor_kv", "ot_pool")
_CONTEXT = 10


class Rows:
    """Rows of the task: both segments as the context, the questions as what follows."""

    def __init__(self, count: int, seed: int) -> None:
        self._rows = RecallRows(count, seed)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        ids, labels = row["input_ids"], row["labels"]
        return {"context": ids[:_CONTEXT], "input_ids": ids[_CONTEXT:], "labels": labels[_CONTEXT:]}


@torch.no_grad()
def accuracy(compressor: Trained, count: int = 512) -> dict[str, float]:
    """On rows that no training has."""
    rows = Rows(count, 987_654_321)
    found = [rows[number] for number in range(count)]
    context, ids, labels = (torch.from_numpy(np.stack([row[key] for row in found])) for key in rows[0])
    memory = compressor.encode(context, compressor.config.ratio)
    right = compressor.model(ids, memory=memory).logits_BTV.argmax(-1) == labels
    return {"heldout_accuracy": float(right[labels >= 0].float().mean())}


def run(kind: str, seed: int, steps: int, slots: int, every: int, directory: Path) -> dict[int, float]:
    """The accuracies by step."""
    if kind == "summary":
        settings = {"evaluate_every": every, "checkpoint_every": every}
        recall_trainer("accumulate", seed, steps, str(directory), slots // 2, **settings).fit()
    else:
        model = recall_compressor("none", seed).model  # the same first weights
        compressor = create(kind, model, ratio=_CONTEXT / slots, seed=seed, init_std=0.5)
        assert isinstance(compressor, Trained)
        config = TrainerConfig(
            steps=steps,
            batch_size=64,
            optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.01, betas=(0.9, 0.95)),
            schedule=ScheduleConfig(kind="constant", warmup_fraction=0),
            precision="fp32",
            device="cpu",
            log_every=every,
            evaluate_every=every,
            checkpoint_every=every,
        )
        compressor.fit(Rows(64 * steps, seed), config, directory, accuracy)
    rows = read_metrics(directory / "metrics.jsonl")
    return {int(row["step"]): row["heldout_accuracy"] for row in rows if "heldout_accuracy" in row}


def main() -> None:
    """Train and print one line a training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name, default in (("steps", 600), ("seeds", 3), ("slots", 8), ("every", 50)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    options = parser.parse_args()
    found = json.loads(options.out.read_text()) if options.out.exists() else []
    keys = ("kind", "seed", "steps", "slots")
    for seed in range(options.seeds):
        for kind in options.kinds:
            asked = (kind, seed, options.steps, options.slots)
            if any(tuple(each[name] for name in keys) == asked for each in found):
                continue
            began = time.time()
            place = options.out.with_suffix("") / f"{kind}-{seed}-{options.slots}-{options.steps}"
            curve = run(kind, seed, options.steps, options.slots, options.every, place)
            reached = next((step for step, score in curve.items() if score >= 0.9), None)
            line = dict(zip(keys, asked, strict=True)) | {"accuracy": curve[options.steps], "first at 0.9": reached}
            found.append(line | {"seconds": round(time.time() - began), "load": os.getloadavg()[0]})
            print(json.dumps(found[-1]), flush=True)
            found[-1]["curve"] = curve
            options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
