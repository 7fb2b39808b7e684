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
import random
import time
from collections import Counter
from pathlib import Path

from lmlab.methods.autocompressor.training.recall import fit_recall, recall_trainer, recall_training
from lmlab.train import read_metrics

KINDS = ("summary", "icae", "kv_tokens", "bi_tokens", "meanpool", "anchor_kv", "ot_pool")


def run(kind: str, seed: int, steps: int, slots: int, every: int, directory: Path) -> dict[int, float]:
    """The accuracies by step."""
    if kind == "summary":
        settings = {"evaluate_every": every, "checkpoint_every": every}
        recall_trainer("accumulate", seed, steps, str(directory), slots // 2, **settings).fit()
    else:
        config = recall_training(steps, log_every=every, evaluate_every=every, checkpoint_every=every)
        fit_recall(kind, seed, slots, config, str(directory))
    rows = read_metrics(directory / "metrics.jsonl")
    return {int(row["step"]): row["heldout_accuracy"] for row in rows if "heldout_accuracy" in row}


def unbound_score(times: int = 100_000) -> float:
    """What a reader scores who knows which values the context holds, but not whose they are: each answer is the most
    frequent value among those not yet asked for.
    """
    draw, right = random.Random(0), 0
    for _ in range(times):
        asked = [draw.randrange(8) for _ in range(4)]
        for number, value in enumerate(asked):
            left = asked[number:]
            draw.shuffle(left)  # of values that are as frequent any may be named
            right += Counter(left).most_common(1)[0][0] == value
    return right / (4 * times)


def main() -> None:
    """Train and print one line a training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name, default in (("steps", 600), ("seeds", 3), ("slots", 8), ("every", 50)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    options = parser.parse_args()
    print(f"values known, but not whose they are: {unbound_score():.3f}", flush=True)
    found = json.loads(options.out.read_text()) if options.out.exists() else []
    keys = ("kind", "seed", "steps", "slots", "every")  # how often is looked decides when 0.9 is first seen
    for seed in range(options.seeds):
        for kind in options.kinds:
            asked = (kind, seed, options.steps, options.slots, options.every)
            if any(tuple(each.get(name) for name in keys) == asked for each in found):
                continue
            began = time.time()
            place = options.out.with_suffix("") / "-".join(map(str, asked))
            curve = run(kind, seed, options.steps, options.slots, options.every, place)
            reached = next((step for step, score in curve.items() if score >= 0.9), None)
            line = dict(zip(keys, asked, strict=True)) | {"accuracy": curve[options.steps], "first at 0.9": reached}
            found.append(line | {"seconds": round(time.time() - began), "load": os.getloadavg()[0]})
            print(json.dumps(found[-1]), flush=True)
            found[-1]["curve"] = curve
            options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
