"""Learning at toy scale: dense, coarse and fine experts of equal active size, with and without load balancing, beside
reference values.

    LMLAB_SHARED=... python benchmarks/moe_learning.py [--seeds 0 1 2] [--variants NAME ...] [--out runs/moe-learning]

Each variant is trained for 600 steps of 2,048 bytes (two to three minutes of one core). What is finished is not trained
again, so the benchmark can be run in pieces. The reference values were computed by another implementation
(`transformers`) on the same text; whether its dense model has QK-norm is not known, so both are trained.
"""

from __future__ import annotations

import argparse
import os
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

REFERENCE = {"dense-no-qk-norm": 2.413, "coarse": 2.365, "fine": 2.335, "fine-no-balancing": 2.382, "dense": None}
TOLERANCE = 0.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(REFERENCE), choices=REFERENCE)
    parser.add_argument("--out", type=Path, default=Path("runs/moe-learning"))
    arguments = parser.parse_args()
    from lmlab.config import validate
    from lmlab.files import read_yaml
    from lmlab.hardware import reuse_memory
    from lmlab.methods.olmoe import AblationConfig, run_ablation

    reuse_memory()
    settings = read_yaml(Path(__file__).parents[1] / "recipes" / "olmoe-ablations.yaml")
    settings["variants"] = {name: settings["variants"][name] for name in REFERENCE}
    settings["choices"] = [each for each in settings["choices"] if set(each["variants"]) <= set(REFERENCE)]
    settings |= {
        "seeds": arguments.seeds,
        "only": arguments.variants,
        "optimizer": {},
        "texts": str(Path(os.environ.get("LMLAB_SHARED", "../shared"), "data/texts")),
    }
    config = validate(AblationConfig, settings, "the ablation")

    def told(result: dict[str, object]) -> None:
        print(
            f"{result['variant']}, seed {result['seed']}: loss {result['loss']:.4f}, highest loads"
            f" {result['max_load']}",
            flush=True,
        )

    found = run_ablation(config, arguments.out, told)
    print(
        "| variant | parameters | loss by seed | mean | deviation | reference | difference | 0.03"
        " |\n|---|---|---|---|---|---|---|---|"
    )
    means = {}
    for name, results in found["results"].items():
        losses = [each["loss"] for each in results]
        if losses:
            means[name] = mean(losses)
            spread = f"{stdev(losses):.4f}" if len(losses) > 1 else "-"
            reference = REFERENCE[name]
            gap = None if reference is None else means[name] - reference
            compared = (
                ["-", "-", "-"]
                if gap is None
                else [f"{reference:.3f}", f"{gap:+.4f}", "within" if abs(gap) <= TOLERANCE else "BEYOND"]
            )
            cells = [
                name,
                f"{results[0]['parameters']:,}",
                " ".join(f"{each:.4f}" for each in losses),
                f"{means[name]:.4f}",
                spread,
            ]
            print("| " + " | ".join([*cells, *compared]) + " |")
    order = [name for name in ("fine", "coarse", "dense-no-qk-norm") if name in means]
    print(f"order {' < '.join(order)}:", all(means[a] < means[b] for a, b in pairwise(order)))
    for row in found["comparisons"]:
        print(row)


if __name__ == "__main__":
    main()
