"""Forecast and outcome of `recipes/demo.yaml` over several seeds.

    python benchmarks/ladder_demo_seeds.py [--seeds 0,1,2,3,4] [--out DIR] [--scale 1.0] [--refit]

Runs the recipe as far as the outcome once for each seed (finished runs are kept) and prints what its ladder forecast
before the training, beside what came of it. `--scale` shortens all runs and the target, where time is short. `--refit`
trains nothing: the finished seeds of DIR, forecast again from their ladders by the code as it is.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml

from lmlab.files import read_json, read_yaml
from lmlab.methods.ladder import RunTable, Task
from lmlab.methods.ladder.rungs.plan import parse_length
from lmlab.methods.ladder.stages import forecast

_STAGES = ("documents", "tokenizer", "tokens", "heldout_tokens", "words", "ladder", "model", "outcome")
RECIPE = Path(__file__).parents[1] / "recipes" / "demo.yaml"


def _shorten(stages: dict, scale: float) -> None:
    """All runs of the ladder, and the model, for a share of their tokens."""
    ladder, trainer = stages["ladder"], stages["model"]["trainer"]
    tokens = trainer["batch_size"] * stages["model"]["seq_len"]
    ladder["lengths"] = [int(scale * parse_length(each, 1)) for each in ladder["lengths"]]
    trainer["steps"] = round(scale * trainer["steps"])
    trainer["evaluate_every"] = trainer["steps"] // 2
    ladder["target"]["tokens"] = trainer["steps"] * tokens


def _again(folder: Path) -> dict:
    """The outcome of one seed beside what is forecast from its ladder today."""
    outcome, made = read_json(folder / "results.json")["outcome"], read_json(folder / "ladder" / "forecast.json")
    table = RunTable.read(folder / "ladder" / "runs.csv")
    n, d = made["n"], made["d"]
    found = forecast(table, Task.model_validate(made["task"]), n, d, made["target_flops"] / d)
    for name in ("accuracy", "heldout_loss"):
        outcome[name] |= found[name]
        outcome[name]["inside"] = found[name]["lo"] <= outcome[name]["outcome"] <= found[name]["hi"]
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--refit", action="store_true", help="forecast again from the ladders that are there")
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="lmlab-demo-seeds-"))
    out.mkdir(parents=True, exist_ok=True)
    recipe, rows = out / "recipe.yaml", []
    whole = read_yaml(RECIPE)
    whole["stages"] = {name: whole["stages"][name] for name in _STAGES}
    if arguments.scale != 1:
        _shorten(whole["stages"], arguments.scale)
    if not arguments.refit:
        recipe.write_text(yaml.safe_dump(whole, sort_keys=False), "utf-8")
    for seed in arguments.seeds.split(","):
        if arguments.refit:
            if (out / seed / "results.json").is_file():
                rows.append((seed, _again(out / seed)))
            continue
        subprocess.run(
            [sys.executable, "-m", "lmlab", "run", str(recipe), "--out", str(out / seed), "--set", f"seed={seed}"],
            check=True,
        )
        rows.append((seed, read_json(out / seed / "results.json")["outcome"]))
    for name, scale, digits in (("heldout_loss", 1.0, 3), ("accuracy", 100.0, 1)):
        print(
            f"\n| {name}, seed | forecast | 90 % interval | outcome | error | best small run | line in log compute"
            " |\n|---|---|---|---|---|---|---|"
        )
        for seed, outcome in rows:
            each = {key: value * scale for key, value in outcome[name].items() if key not in ("inside", "told")}
            cells = [f"{each[key]:.{digits}f}" for key in ("value", "outcome")]
            interval = f"{each['lo']:.{digits}f} to {each['hi']:.{digits}f}"
            simple = " | ".join(f"{each[key]:.{digits}f}" for key in ("carry_forward", "log_linear"))
            print(
                f"| {seed} | {cells[0]} | {interval} | {cells[1]} | {each['value'] - each['outcome']:+.{digits}f} |"
                f" {simple} |"
            )
        errors = [abs(outcome[name]["value"] - outcome[name]["outcome"]) * scale for _, outcome in rows]
        inside = sum(outcome[name]["inside"] for _, outcome in rows)
        print(f"mean error {np.mean(errors):.{digits}f}; {inside} of {len(rows)} outcomes inside")
        for key in ("carry_forward", "log_linear"):
            simple = [abs(outcome[name][key] - outcome[name]["outcome"]) * scale for _, outcome in rows]
            print(f"mean error of {key}: {np.mean(simple):.{digits}f}")
    if not arguments.refit:
        print(f"the forecasts came first: {all(outcome['before'] for _, outcome in rows)}")


if __name__ == "__main__":
    main()
