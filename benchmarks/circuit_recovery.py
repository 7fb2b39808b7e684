"""Known circuits found again: every method on programs that Tracr compiled, with rates, intervals and times.

    PYTHONPATH=tracr jax/bin/python benchmarks/tracr_compile.py --cases circuits-benchmark --out programs
    python benchmarks/circuit_recovery.py --programs programs --out recovery.jsonl
    python benchmarks/circuit_recovery.py --programs programs --out recovery.jsonl --report

It goes on where it was stopped (--seconds N stops by itself after so much CPU time), a line of the file for each
program, ablation, method, seed and settings; what was searched by other settings is searched again. What an edge is
worth is measured on the plain masked model first: the *needed* edges are those whose absence alone raises the distance
by more than 1e-5 of the empty circuit's. They are the known circuit where they are enough by themselves (their distance
is below 1e-3 of the empty circuit's); elsewhere edges replace each other, and the best circuit that any method found
stands for it. A circuit is *recovered* if it is that set, or is as close to the model (1e-3 of the empty circuit's
distance) with no more edges. Programs whose corruption changes nothing are left out and counted.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import torch

_TRIED = ("edge-pruning", "gates alone", "ugs", "ranking", "acdc", "exact", "node-pruning")
_SCORED = ("eap", "eap-ig", "eap-gp", "mask-ig", "relp", "atp-star", "atp-star whole", "ifr", "nap-ig", "random")
METHODS = (*_TRIED, *_SCORED)
_TRAINED = ("edge-pruning", "gates alone", "ugs", "ranking", "node-pruning")
_CLOSE, _NEEDED = 1e-3, 1e-5


def _task(folder: Path, ablation: str, most: int):
    from lmlab.methods.edge_pruning import CircuitGraph, Counterfactuals, MaskedModel, load_tracr
    from lmlab.methods.edge_pruning.examples.tracr import EMBEDDINGS

    read = load_tracr(folder)
    masked = MaskedModel(read.model, CircuitGraph(read.model.config, embedding_names=EMBEDDINGS))
    count = len(read.examples)
    # cases in order of their tokens are alike next to each other, so some of all are taken
    examples = read.examples.take(torch.arange(most) * count // most) if most < count else read.examples
    return Counterfactuals(masked, examples, ablation, batch_size=256)


def _search(task: Any, ablation: str, method: str, seed: int, steps: int, size: int):
    from lmlab.methods.edge_pruning import FindConfig, search

    pruning = {"steps": steps, "batch_size": 32}
    settings: dict[str, Any] = {"ablation": ablation, "method": method}
    if method == "gates alone":
        settings |= {"method": "edge-pruning", "pruning": {**pruning, "polish": False}}
    elif method in ("edge-pruning", "node-pruning", "ugs"):
        settings |= {"pruning": pruning}
    elif method == "acdc":
        settings |= {"threshold": _CLOSE}
    elif method == "atp-star whole":
        settings |= {"method": "atp-star", "whole_gradient": True, "num_edges": size}
    else:
        settings |= {"num_edges": size, **({"ranking": pruning} if method == "ranking" else {})}
    return search(task, FindConfig(**settings), seed)


def _settings(arguments: argparse.Namespace, method: str) -> dict[str, Any]:
    """What a line depends on besides its program, ablation, method and seed."""
    found = {"programs": str(arguments.programs), "examples": arguments.examples}
    return found | ({"steps": arguments.steps} if method in _TRAINED else {})


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    """What a line is of; those of no known settings are of none that can be asked for."""
    return line["program"], line["ablation"], line["method"], line["seed"], _told(line.get("settings"))


def _told(settings: dict[str, Any] | None) -> str:
    return json.dumps(settings, sort_keys=True)


def _measured(line: dict[str, Any]) -> str:
    """What decides the known circuit and the distances: all settings but those of a training."""
    return _told({name: value for name, value in line.get("settings", {}).items() if name != "steps"})


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(arguments: argparse.Namespace) -> None:
    """Search, a line at a time."""
    from lmlab.errors import UserError
    from lmlab.methods.edge_pruning import auroc, exact_effects, ranking
    from lmlab.progress import console

    console.quiet = True
    torch.set_num_threads(1)
    started = time.process_time()
    done = {_key(each) for each in _lines(arguments.out)}
    print(f"load {os.getloadavg()[0]:.1f}; {len(done)} lines before")
    sizes = {
        path: json.loads((path / "config.json").read_text())["n_edges"]
        for path in arguments.programs.iterdir()
        if (path / "config.json").exists()
    }
    folders = sorted(
        (path for path in sizes if sizes[path] >= arguments.least_edges), key=lambda path: (sizes[path], path)
    )
    methods = arguments.method or METHODS
    for folder in folders:
        for ablation in arguments.ablation or ("zero", "interchange"):
            wanted = [
                (method, seed)
                for method in methods
                for seed in range(arguments.seeds if method == "edge-pruning" else 1)
                if (folder.name, ablation, method, seed, _told(_settings(arguments, method))) not in done
            ]
            if not wanted or (folder.name, ablation, "none", 0, _told(_settings(arguments, "none"))) in done:
                continue
            row: dict[str, Any] = {"program": folder.name, "ablation": ablation}
            try:
                task = _task(folder, ablation, arguments.examples)
                empty = task.empty_distance
            except (UserError, RuntimeError) as error:
                _append(
                    arguments.out,
                    {
                        **row,
                        "method": "none",
                        "seed": 0,
                        "settings": _settings(arguments, "none"),
                        "why": str(error)[:200],
                    },
                )
                continue
            needed_E = exact_effects(task, 1024) > _NEEDED * empty
            size = max(1, int(needed_E.sum()))
            known = task.mean_distance(needed_E) <= _CLOSE * empty
            row |= {"edges": len(needed_E), "needed": int(needed_E.sum()), "enough": known}
            for method, seed in wanted:
                if time.process_time() - started > arguments.seconds:
                    print("stopped; the same command goes on")
                    return
                begin = time.process_time()
                found = _search(task, ablation, method, seed, arguments.steps, size)
                seconds = time.process_time() - begin
                ranked_E = ranking(method if method != "gates alone" else "edge-pruning", found.scores_E)
                _append(
                    arguments.out,
                    {
                        **row,
                        "method": method,
                        "seed": seed,
                        "settings": _settings(arguments, method),
                        "found": int(found.kept_E.sum()),
                        "distance": task.mean_distance(found.kept_E) / empty,
                        "same": bool(torch.equal(found.kept_E, needed_E)),
                        "converged": found.converged,
                        "auroc": auroc(ranked_E, needed_E) if 0 < int(needed_E.sum()) < len(needed_E) else None,
                        "seconds": round(seconds, 2),
                    },
                )


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def report(arguments: argparse.Namespace) -> None:
    """A table for each set of programs and number of examples; a row for each method and number of steps."""
    tables: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for each in _lines(arguments.out):
        tables[_measured(each)].append(each)
    for told, lines in tables.items():
        if len(tables) > 1:
            print(f"\n{told if told != '{}' else 'no settings are known'}")
        _table(lines, arguments.failures)


def _table(lines: list[dict[str, Any]], failures: bool) -> None:
    from lmlab.stats import wilson

    best: dict[tuple[str, str], int] = {}
    for each in lines:
        if each["method"] != "none" and each["distance"] <= _CLOSE:
            key = (each["program"], each["ablation"])
            best[key] = min(best.get(key, each["found"]), each["found"])
    left_out = [each for each in lines if each["method"] == "none"]
    rows: dict[tuple[str, int | None], list[dict[str, Any]]] = defaultdict(list)
    for each in lines:
        if each["method"] != "none":
            rows[each["method"], each.get("settings", {}).get("steps")].append(each)
    programs = {each["program"] for each in lines if each["method"] != "none"}
    tasks = {(each["program"], each["ablation"]): each for each in lines if each["method"] != "none"}
    if not tasks:
        print(f"{len(left_out)} tasks left out: the corruption changes nothing.")
        return
    print(
        f"{len(programs)} programs, {len(tasks)} tasks with both ablations ({len(left_out)} left out: the corruption"
        f" changes nothing); the needed edges are enough in {sum(each['enough'] for each in tasks.values())}; "
        f"{min(each['edges'] for each in tasks.values())} to {max(each['edges'] for each in tasks.values())} edges."
    )
    print(
        "| method | runs | recovered | 95 % interval | exact set | silent failures | AUROC, median | s a run, median |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for method, steps in sorted(rows, key=lambda row: (METHODS.index(row[0]), row[1] or 0)):
        found = rows[method, steps]
        several = sum(other == method for other, _ in rows) > 1
        label = f"{method}, {steps} steps" if several else method
        good = [
            each["same"] or (each["distance"] <= _CLOSE and each["found"] <= best[each["program"], each["ablation"]])
            for each in found
        ]
        share = wilson(sum(good), len(good))
        # converged is null where single edges were not tried
        silent = sum(not ok and each["converged"] is True for ok, each in zip(good, found, strict=True))
        areas = [each["auroc"] for each in found if each["auroc"] is not None]
        area = f"{median(areas):.3f}" if areas else "-"
        print(
            f"| {label} | {len(found)} | {100 * sum(good) / len(good):.1f} % | {100 * share.low:.1f} to"
            f" {100 * share.high:.1f} % | {100 * sum(each['same'] for each in found) / len(found):.1f} % | {silent} |"
            f" {area} | {median(each['seconds'] for each in found):.1f} |"
        )
        for ok, each in zip(good, found, strict=True):
            if not ok and failures and method == "edge-pruning":
                print("   ", each, "best", best.get((each["program"], each["ablation"])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--least-edges", type=int, default=0, help="only programs with so many edges")
    parser.add_argument("--examples", type=int, default=256, help="cases of each program at most")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seconds", type=float, default=1e9, help="of CPU time: stop after so long")
    parser.add_argument("--method", action="append", help="only these")
    parser.add_argument("--ablation", action="append", help="zero or interchange, by default both")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--failures", action="store_true", help="with --report: list them")
    arguments = parser.parse_args()
    (report if arguments.report else run)(arguments)


if __name__ == "__main__":
    main()
