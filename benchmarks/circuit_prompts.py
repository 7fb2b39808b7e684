"""The case study of the paper at small scale: is what a model does after an instruction what it does after examples?

    python benchmarks/circuit_prompts.py --model models/smollm2 --out case-study
    python benchmarks/circuit_prompts.py --model models/smollm2 --out case-study --report

Bhaskar et al. 2024, section 6, take Boolean expressions and CodeLlama-13B, at a task that a small model cannot do; here
it is capitals of countries, asked for by a question or after three solved lines. The corrupted prompt names another
country, whose capital is the wrong answer. Countries of `test` are in no prompt of `train`, nor are those of the solved
lines in either. One circuit of the same number of edges is found for each prompt, and for the first once more with
another seed, which says how much of a difference is chance. Each circuit, and what both have in common, is measured on
both prompts. Circuits lie in --out; those that are there are not searched for again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from pathlib import Path
from typing import Any

PROMPTS = {
    "instruction": "What is the capital of {}? The capital is the city of",
    "examples": "Japan: Tokyo\nKenya: Nairobi\nNorway: Oslo\n{}:",
}
CAPITALS = {
    **{"France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Russia": "Moscow"},
    **{"China": "Beijing", "Egypt": "Cairo", "England": "London", "Austria": "Vienna", "Greece": "Athens"},
    **{"Ireland": "Dublin", "Portugal": "Lisbon", "Sweden": "Stockholm", "Denmark": "Copenhagen"},
    **{"Finland": "Helsinki", "Poland": "Warsaw", "Hungary": "Budapest", "Turkey": "Ankara", "Iran": "Tehran"},
    **{"Iraq": "Baghdad", "Cuba": "Havana", "Peru": "Lima", "Canada": "Ottawa", "Syria": "Damascus"},
    **{"Lebanon": "Beirut", "Vietnam": "Hanoi", "Thailand": "Bangkok", "Scotland": "Edinburgh"},
    **{"Belgium": "Brussels", "Ukraine": "Kiev", "Romania": "Bucharest", "Indonesia": "Jakarta"},
    **{"Australia": "Canberra"},
}
RUNS = (("instruction", 0), ("examples", 0), ("instruction", 1))
_HELD_OUT = 3  # of every so many countries one is for the test


def rows(kind: str, tokenizer: Any, split: str, count: int) -> list[dict[str, Any]]:
    """Pairs of countries whose prompts have as many tokens, of the countries of a split."""
    prompt, draws = PROMPTS[kind], random.Random(0)

    def single(country: str) -> bool:
        """Whether the capital is one token after both prompts, so that both have the same countries."""
        answer = tokenizer.encode(f" {CAPITALS[country]}")
        each = [tokenizer.encode(f"{text.format(country)} {CAPITALS[country]}") for text in PROMPTS.values()]
        return len(answer) == 1 and all(ids[-1:] == answer for ids in each)

    usable = [country for country in CAPITALS if single(country)]
    own = [country for n, country in enumerate(usable) if (n % _HELD_OUT == 0) == (split == "test")]
    pairs = [
        (a, b)
        for a in own
        for b in own
        if a != b and len(tokenizer.encode(prompt.format(a))) == len(tokenizer.encode(prompt.format(b)))
    ]
    draws.shuffle(pairs)
    return [
        {
            "clean": prompt.format(a),
            "corrupted": prompt.format(b),
            "answer": f" {CAPITALS[a]}",
            "distractor": f" {CAPITALS[b]}",
        }
        for a, b in pairs[:count]
    ]


def _tasks(arguments: argparse.Namespace) -> dict[tuple[str, str], Any]:
    from lmlab.files import write_jsonl
    from lmlab.methods.edge_pruning import TaskOptions
    from lmlab.methods.edge_pruning.examples.load import load
    from lmlab.runs import Model

    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer, found = Model.find(arguments.model).tokenizer_if_any(), {}
    for kind in PROMPTS:
        for split in ("train", "test"):
            path = arguments.out / f"{kind}-{split}.jsonl"
            write_jsonl(path, rows(kind, tokenizer, split, arguments.examples))
            options = TaskOptions(data=path, device="cpu", batch_size=arguments.batch)
            found[kind, split], _ = load(arguments.model, options).task("interchange", options=options)
    return found


def run(arguments: argparse.Namespace) -> None:
    """Search, measure and write results.json."""
    import torch

    from lmlab.files import write_json
    from lmlab.hardware import reuse_memory
    from lmlab.methods.edge_pruning import Circuit, Ends, FindConfig, find_circuit, measure_each, overlap
    from lmlab.progress import console

    console.quiet = True
    reuse_memory()
    torch.set_num_threads(arguments.threads)
    tasks, circuits = _tasks(arguments), {}
    edges = tasks["instruction", "train"].masked.graph.num_edges
    config = FindConfig(
        num_edges=round(arguments.share * edges),
        price=2e-4,
        warm_start=True,
        pruning={"steps": arguments.steps, "batch_size": arguments.batch, "learning_rate": 0.3, "polish": False},
    )
    for kind, seed in RUNS:
        name, path = f"{kind}, seed {seed}", arguments.out / f"{kind}-{seed}.json"
        if not path.exists():
            load, begin = os.getloadavg()[0], time.process_time()
            found = find_circuit(tasks[kind, "train"], config, seed)
            found.save(path)
            print(f"{name}: {time.process_time() - begin:.0f} s of CPU time, load {load:.1f}", flush=True)
        circuits[name] = Circuit.load(path).kept_E
    both = [circuits[f"{kind}, seed 0"] for kind in PROMPTS]
    circuits |= {"in both": both[0] & both[1], "in either": both[0] | both[1]}
    results: dict[str, Any] = {"overlap": {}, "measured": {}}
    for a, b in ((0, 1), (0, 2)):
        names = [f"{kind}, seed {seed}" for kind, seed in (RUNS[a], RUNS[b])]
        results["overlap"][" and ".join(names)] = overlap(*(circuits[name] for name in names))
    for kind in PROMPTS:
        task = tasks[kind, "test"]
        ends = Ends.of(task)
        results["measured"][kind] = {
            name: ends.summary(measure_each(task, kept_E)) | {"edges": int(kept_E.sum())}
            for name, kept_E in circuits.items()
        }
    write_json(arguments.out / "results.json", results)
    report(arguments)


def report(arguments: argparse.Namespace) -> None:
    """The tables."""
    results = json.loads((arguments.out / "results.json").read_text())
    for name, each in results["overlap"].items():
        print(
            f"{name}: {each['intersection']:,} of {each['edges_a']:,} and {each['edges_b']:,} edges are shared, Jaccard"
            f" {each['jaccard']:.3f}, {each['expected_by_chance']:.0f} by chance (p {max(each['p'], 1e-300):.1g})"
        )
    kinds = list(results["measured"])
    for kind in kinds:
        first = next(iter(results["measured"][kind].values()))
        print(
            f"{kind}: {first['n']} held-out pairs; logit difference {first['full']['logit_difference']:.2f} of the"
            f" model, {first['empty']['logit_difference']:.2f} without edges; KL without edges"
            f" {first['empty']['distance']:.2f}; accuracy of the model {first['full']['prefers_answer']:.2f}"
        )
    print("| circuit | edges | " + " | ".join(f"{kind}: KL, faithfulness, prefers the answer" for kind in kinds) + " |")
    print("|---|---|" + "---|" * len(kinds))
    for name, first in results["measured"][kinds[0]].items():
        cells = []
        for kind in kinds:
            each = results["measured"][kind][name]
            found, (low, high) = each["circuit"], each["intervals"]["faithfulness"]
            cells.append(
                f"{found['distance']:.3f} ± {1.96 * each['errors']['distance']:.3f}, {found['faithfulness']:.2f}"
                f" ({low:.2f} to {high:.2f}), {found['prefers_answer']:.2f}"
            )
        print(f"| {name} | {first['edges']:,} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=24)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--share", type=float, default=0.05, help="of all edges")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    (report if arguments.report else run)(arguments)


if __name__ == "__main__":
    main()
