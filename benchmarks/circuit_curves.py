"""Curves of circuits over their size on a real model, held out, for several tasks and methods.

    python benchmarks/circuit_curves.py --model models/smollm2 --out curves.jsonl --seconds 570
    python benchmarks/circuit_curves.py --model models/smollm2 --out curves.jsonl --report
    python benchmarks/circuit_curves.py --model runs/demo/model --data runs/demo-circuit/examples/examples.jsonl \
        --method eap --method eap-ig --method acdc --method "edge-pruning each" --method exact --out small.jsonl

It goes on where it was stopped, a line for each method, task and settings, methods in turns over all tasks; what was
measured by other settings is measured again, and stands in a table of its own where other pairs were measured. Every
method ranks all edges on `train`; the best are kept, cleaned and measured on `test`, whose templates (ioi), predicates
(pronouns), years (greater-than) and expressions (boolean) no search saw. Faithfulness is by the metric of the task,
which first-order scores go by too: the logit difference, or for greater-than the probability difference of all later
less all earlier values. `edge-pruning 5%` trains its gates for that share of edges; its other sizes are by rank.
`edge-pruning each` trains them for each size anew. `ranking` is trained to be close to the model, `ranking faithful`
for |1 - faithfulness| (CMD), `ranking metric` for a high metric (CPR), with sizes drawn uniformly. `acdc`, which is for
small models, is searched with falling thresholds: an edge ranks by how many of them keep it, then by its rise under the
lowest; the circuits of the thresholds are measured too. With --data the task is a file of one's own whose lines name
the splits `train` and `test`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

TASKS = ("ioi", "greater-than", "pronouns", "boolean")
METHODS = ("eap", "eap-ig", "edge-pruning 5%", "relp", "edge-pruning 1%", "random", "ifr", "ranking")
RANKED = {"": ("distance", "log"), "faithful": ("faithful", "log"), "metric": ("metric", "uniform")}
FRACTIONS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
THRESHOLDS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # of acdc, as shares of the empty circuit's distance
RATES = {"edge-pruning": 0.3, "ranking": 0.2}  # of the methods that train
_TRAINING = ("steps", "learning_rate")


def _count(arguments: argparse.Namespace, split: str) -> int:
    return arguments.examples if split == "test" else arguments.search_examples or arguments.examples


def _settings(arguments: argparse.Namespace, method: str) -> dict[str, Any]:
    """What the figures of a method and task depend on besides these; a line with the same is not measured again."""
    found: dict[str, Any] = {
        name: None if (value := getattr(arguments, name)) is None else str(value)
        for name in ("model", "data", "tokenizer")
    }
    found |= {f"examples of {split}": _count(arguments, split) for split in ("train", "test")}
    found |= {"fractions": list(arguments.fraction or FRACTIONS), "batch": arguments.batch}
    name = method.partition(" ")[0]
    if name in RATES:
        found |= {"steps": arguments.steps, "learning_rate": arguments.learning_rate or RATES[name]}
    return found


def _tasks(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    from lmlab.files import write_jsonl
    from lmlab.methods.edge_pruning import TaskOptions, generate
    from lmlab.methods.edge_pruning.examples.load import load
    from lmlab.runs import Model

    words, found = Model.find(arguments.model).tokenizer_if_any(), {}
    if arguments.data is not None:
        for split in ("train", "test"):
            given = {"split": split, "num_examples": _count(arguments, split), "tokenizer": arguments.tokenizer}
            options = TaskOptions(data=arguments.data, device="cpu", batch_size=arguments.batch, **given)
            found[split], _ = load(arguments.model, options).task("interchange", options=options)
        return found
    with tempfile.TemporaryDirectory() as directory:
        for split in ("train", "test"):
            path = Path(directory) / f"{split}.jsonl"
            write_jsonl(path, generate(name, words, _count(arguments, split), split=split, shots=2))
            options = TaskOptions(data=path, device="cpu", batch_size=arguments.batch)
            found[split], lines = load(arguments.model, options).task("interchange", options=options)
    print("\n".join(lines))
    return found


def _config(arguments: argparse.Namespace, method: str, metric: str, edges: int):
    from lmlab.methods.edge_pruning import FindConfig

    training = {"steps": arguments.steps, "batch_size": arguments.batch}
    name, _, share = method.partition(" ")
    if name == "edge-pruning":
        pruning = {**training, "learning_rate": arguments.learning_rate or RATES[name], "polish": False}
        size = round(float(share.removesuffix("%")) / 100 * edges)
        return FindConfig(num_edges=size, price=2e-4, warm_start=True, pruning=pruning)
    given: dict[str, Any] = {}
    if name == "ranking":
        objective, sizes = RANKED[share]
        rate = arguments.learning_rate or RATES[name]
        given["ranking"] = {**training, "learning_rate": rate, "objective": objective, "sizes": sizes}
    if name in ("eap", "eap-ig", "relp") or share in ("faithful", "metric"):
        given["metric"] = metric
    return FindConfig(method=name, num_edges=round(0.05 * edges), **given)


def _rankings(arguments: argparse.Namespace, method: str, metric: str, task: Any):
    """Scores of edges with the shares of edges that are kept by them, and circuits that the method itself gave."""
    from lmlab.methods.edge_pruning import FindConfig, ranking, search

    edges, fractions = task.masked.graph.num_edges, arguments.fraction or FRACTIONS
    if method == "acdc":
        circuits, votes_E = [], 0.0
        for threshold in THRESHOLDS:
            found = search(task, FindConfig(method="acdc", threshold=threshold))
            circuits.append((threshold, found.kept_E))
            votes_E = votes_E + found.kept_E.double()
        # less than one vote: what the lowest threshold says of edges that as many keep
        last_E = found.scores_E.double() / (2 * found.scores_E.abs().max())
        return [(votes_E + last_E, fractions)], circuits
    if method == "edge-pruning each":
        each = [f"edge-pruning {100 * fraction}%" for fraction in fractions]
        found = [search(task, _config(arguments, name, metric, edges)) for name in each]
        return [(one.scores_E, (at,)) for one, at in zip(found, fractions, strict=True)], []
    found = search(task, _config(arguments, method, metric, edges))
    return [(ranking(method.partition(" ")[0], found.scores_E), fractions)], []


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(arguments: argparse.Namespace) -> None:
    """A line at a time."""
    import torch

    from lmlab.hardware import reuse_memory
    from lmlab.methods.edge_pruning import Ends, areas, curve, measure_each
    from lmlab.progress import console

    console.quiet = True
    reuse_memory()
    torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    # lines without settings are of no known ones
    done = [(each["task"], each["method"], each.get("settings")) for each in _lines(arguments.out)]
    ready: dict[str, Any] = {}
    for method in arguments.method or METHODS:
        for name in arguments.task or (TASKS if arguments.data is None else (arguments.data.stem,)):
            settings = _settings(arguments, method)
            if (name, method, settings) in done:
                continue
            if time.monotonic() - started > arguments.seconds:
                print("stopped; the same command goes on")
                return
            metric = "probability_difference" if name == "greater-than" else "logit_difference"
            if name not in ready:
                tasks = _tasks(arguments, name)
                ready[name] = tasks, Ends.of(tasks["test"], metric)
            tasks, ends = ready[name]
            edges = tasks["train"].masked.graph.num_edges
            load, begin = os.getloadavg()[0], time.process_time()
            rankings, circuits = _rankings(arguments, method, metric, tasks["train"])
            seconds = time.process_time() - begin
            rows = [curve(tasks["test"], scores_E, ends, fractions) for scores_E, fractions in rankings]
            rows = [row for each in rows for row in each]
            rows.append({"fraction": 1.0, "edges": edges, **ends.full, "faithfulness": 1.0})  # the model itself
            own = [{"threshold": at, **ends.summary(measure_each(tasks["test"], E))} for at, E in circuits]
            own = [{**each, "edges": int(E.sum())} for each, (_, E) in zip(own, circuits, strict=True)]
            line = {
                "task": name,
                "method": method,
                "metric": metric,
                "examples": len(tasks["test"].examples),
                "searched": len(tasks["train"].examples),
                "settings": settings,
                "tokens": tasks["test"].examples.clean.shape[1],
                "seconds": round(seconds, 1),
                "load": round(load, 1),
                "full": ends.full,
                "empty": ends.empty,
                **areas(rows),
                "curve": rows,
                "circuits": own,
            }
            with arguments.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(
                f"{name}, {method}: {seconds:.0f} s, load {load:.1f}, CMD {line['cmd']:.3f}, CPR {line['cpr']:.3f};"
                f" {metric} {ends.full[metric]:.3f} of the model, {ends.empty[metric]:.3f} without edges",
                flush=True,
            )


def _measured(line: dict[str, Any]) -> str:
    """What the lines of one table share: all but the method and how it trains."""
    shared = {name: value for name, value in line.get("settings", {}).items() if name not in _TRAINING}
    return json.dumps(
        [line["task"], line["examples"], line["searched"], shared, [row["fraction"] for row in line["curve"]]]
    )


def _column(line: dict[str, Any], table: list[dict[str, Any]]) -> str:
    """The method, with how it trained where the table has it several times."""
    trained = [
        f"{name.replace('_', ' ')} {line['settings'][name]}" for name in _TRAINING if name in line.get("settings", {})
    ]
    several = sum(each["method"] == line["method"] for each in table) > 1
    return ", ".join([line["method"], *trained]) if several else line["method"]


def report(arguments: argparse.Namespace) -> None:
    """A table for each task, and for each way of measuring it."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for each in _lines(arguments.out):
        tables.setdefault(_measured(each), []).append(each)
    for own in tables.values():
        first = own[0]
        full, empty = (first[which][first["metric"]] for which in ("full", "empty"))
        of = first["settings"]["model"] if "settings" in first else "a model that the lines do not name"
        print(f"\n{first['task']} in {of}, {first['searched']} examples searched and {first['examples']} held out;")
        print(f"{first['metric']} {full:.3f} of the model,")
        print(f"{empty:.3f} without edges; KL without edges {first['empty']['distance']:.3f}")
        print("| edges kept | " + " | ".join(f"{_column(each, own)}: KL, faithfulness" for each in own) + " |")
        print("|---|" + "---|" * len(own))
        for n, row in enumerate(first["curve"][:-1]):
            cells = [
                f"{each['curve'][n]['distance']:.3f} ± {1.96 * each['curve'][n]['distance_error']:.3f},"
                f" {each['curve'][n]['faithfulness']:.2f} ({each['curve'][n]['faithfulness_low']:.2f} to"
                f" {each['curve'][n]['faithfulness_high']:.2f})"
                for each in own
            ]
            print(f"| {100 * row['fraction']:g} % | " + " | ".join(cells) + " |")
        for key in ("cpr", "cmd", "cpr_log", "cmd_log", "seconds", "load"):
            print(f"| {key.replace('_', ', ')} | " + " | ".join(f"{each[key]:.3f}" for each in own) + " |")
        for each in own:
            for row in each.get("circuits", ()):
                figures, low_high = row["circuit"], row["intervals"].get("faithfulness", (float("nan"),) * 2)
                print(
                    f"{_column(each, own)} at {row['threshold']:g}: {row['edges']} edges,"
                    f" KL {figures['distance']:.3f} ± {1.96 * row['errors']['distance']:.3f},"
                    f" faithfulness {figures['faithfulness']:.2f} ({low_high[0]:.2f} to {low_high[1]:.2f})"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", action="append", help="only these")
    parser.add_argument("--method", action="append", help="only these")
    parser.add_argument("--data", type=Path, help="a task of one's own: examples of the splits train and test")
    parser.add_argument("--tokenizer", type=Path, help="with --data: where it is not in the model's folder")
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--search-examples", type=int, help="pairs to search on, by default as many as to measure on")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, help="by default 0.3 of edge-pruning, 0.2 of ranking")
    parser.add_argument("--fraction", action="append", type=float, help="of the edges, in place of 0.5 to 20 %%")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long")
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    (report if arguments.report else run)(arguments)


if __name__ == "__main__":
    main()
