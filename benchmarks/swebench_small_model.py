"""SWE-bench: what a model of 135M makes of issues, before and after a short tuning on bugs of another package.

python benchmarks/swebench_small_model.py --model DIRECTORY --mined INSTANCES.jsonl [...] --train ARCHIVE --test ARCHIVE
    --work FOLDER [--bugs 120] [--tested 24] [--steps 30] [--answer-tokens 240]

Bugs are made by small changes of the syntax tree: those that are learned from in one package, without its tests, those
that are asked in another, by its tests (`lmlab swe synth`). The model is shown the edited regions (oracle-collapsed),
tuned with adapters of rank 8 on the solutions, and asked before and after, the mined instances of releases too. Prints
how many answers copy the example of the prompt, are well-formed (every hunk has as many lines as it says), apply as
they are and after their hunks are moved to where their lines stand, and resolve the issue. What is in FOLDER is not
made again, so that a stopped run goes on.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from lmlab.endpoints import Endpoint
from lmlab.files import read_jsonl, read_mapping, write_json, write_text, write_yaml
from lmlab.methods.swebench import Instance, TreeStore, load_instances
from lmlab.methods.swebench.building.mutations import mutants
from lmlab.methods.swebench.config import SandboxConfig
from lmlab.methods.swebench.harness.evaluate import evaluate
from lmlab.methods.swebench.harness.open import open_judge, open_workspaces, trees_beside
from lmlab.methods.swebench.harness.repairing import repaired
from lmlab.methods.swebench.harness.workspaces.trees import tree_files, unpack
from lmlab.methods.swebench.harness.workspaces.workspace import copied
from lmlab.methods.swebench.inference.contexts import counter_of
from lmlab.methods.swebench.inference.infer import infer
from lmlab.methods.swebench.inference.prompts import EXAMPLE
from lmlab.methods.swebench.inference.settings import InferConfig
from lmlab.methods.swebench.instances.load import write_instances
from lmlab.methods.swebench.instances.predictions import Prediction
from lmlab.methods.swebench.patches.answers import diff_of
from lmlab.methods.swebench.patches.diff import read_diff
from lmlab.methods.swebench.patches.repair import repair_patch
from lmlab.methods.swebench.patches.split import is_test
from lmlab.runs import Vocabulary
from lmlab.stats import wilson

_TOKENS_OF_BUGS = 900  # of a context: thirty lines around one edit
_TOKENS_OF_MINED = 2000
_LONGEST_ROW = 960  # of question and answer
_COPIED = EXAMPLE.splitlines()[7]  # the line that the example removes


def _lmlab(*command: str) -> None:
    subprocess.run((sys.executable, "-m", "lmlab", *command), check=True, stdin=subprocess.DEVNULL)


def _tree(archive: Path, folder: Path) -> Path:
    tree = folder / "tree"
    if not tree.exists():
        tree.mkdir(parents=True)
        unpack(archive.read_bytes(), tree, strip=1)
    return tree


def untested(archive: Path, folder: Path, count: int, seed: int = 0) -> Path:
    """Bugs of a package's archive that no test has confirmed: enough to learn from."""
    found = folder / "instances.jsonl"
    if found.exists():
        return found
    tree, generator, name = _tree(archive, folder), random.Random(seed), archive.name.rpartition("-")[0]
    sources = [path for path in tree_files(tree) if path.endswith(".py") and "/" in path and not is_test(path)]
    made = [(path, each) for path in sources for each in mutants((tree / path).read_text("utf-8"), generator)]
    generator.shuffle(made)
    store, instances = TreeStore(folder / "trees"), []
    for number, (path, mutant) in enumerate(made[:count]):
        with copied(tree) as broken:
            (broken / path).write_text(mutant.source, encoding="utf-8")
            digest = store.add(broken)
        patch = diff_of({path: mutant.source}.get, {path: (tree / path).read_text("utf-8")})
        said = f"`{mutant.function.rpartition('.')[2]}` does not do what it should.\n"
        extra = {"base_tree": digest, "source": "synthetic"}
        instances.append(
            Instance(f"{name}__{name}-{number}", f"{name}/{name}", patch=patch, problem_statement=said, extra=extra)
        )
    write_instances(found, instances)
    return found


def bugs(archive: Path, folder: Path, count: int, require: Sequence[str]) -> Path:
    """Bugs of a package's archive that its tests tell."""
    found = folder / "instances.jsonl"
    if not found.exists():
        tree, name = _tree(archive, folder), archive.name.rpartition("-")[0]
        wanted = [part for each in require for part in ("--require", each)]
        started = time.monotonic()
        _lmlab(
            *("swe", "synth", str(tree), "--name", f"{name}/{name}", "--bugs", str(count), "--timeout-s", "60"),
            *("--out", str(folder), *wanted),
        )
        print(f"{count} bugs of {archive.name} were asked for: {time.monotonic() - started:.0f} s", flush=True)
    return found


def tuned(model: Path, train: Path, test: Path, folder: Path, steps: int) -> Path:
    """The model's directory after tuning; prints what became of the loss."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in (("learned", train), ("asked", test)):
        if not (place := folder / f"{name}.jsonl").exists():
            _lmlab(
                *("swe", "train-data", "-i", str(source), "--context-mix", "oracle-collapsed=1"),
                *("--budget", str(_TOKENS_OF_BUGS), "--max-tokens", str(_LONGEST_ROW - 60), "--tokenizer", str(model)),
                *("--out", str(place)),
            )
    chat = {"max_len": _LONGEST_ROW + 1}
    tokens = {"kind": "tokenize_chat", "tokenizer": str(model), "chat": chat, "max_reject_fraction": 1.0}
    recipe = {
        "name": "swebench-small",
        "seed": 0,
        "stages": {
            "tokens": tokens | {"records": str((folder / "learned.jsonl").resolve())},
            "heldout": tokens | {"records": str((folder / "asked.jsonl").resolve())},
            "model": {
                "kind": "train",
                "start": str(model),
                "tokens": "tokens",
                "heldout_tokens": "heldout",
                "heldout_rows": 8,
                "packing": "best_fit",
                "seq_len": _LONGEST_ROW,
                "lora": {"rank": 8, "alpha": 16},
                "trainer": {
                    "steps": steps,
                    "batch_size": 2,
                    "micro_batch_size": 1,
                    "precision": "bf16",
                    "optimizer": {"learning_rate": 1e-3, "weight_decay": 0},
                    "schedule": {"kind": "cosine", "warmup_fraction": 0.05, "final_fraction": 0},
                    "log_every": 1,
                    "evaluate_every": steps,
                    "checkpoint_every": 10,
                },
            },
        },
    }
    write_text(folder / "recipe.yaml", write_yaml(recipe))
    _lmlab("run", str(folder / "recipe.yaml"), "--out", str(folder / "run"))
    rows = [row for row in read_jsonl(folder / "run" / "model" / "metrics.jsonl") if "loss" in row]
    few = max(1, len(rows) // 6)
    first, last = (sum(row["loss"] for row in part) / few for part in (rows[:few], rows[-few:]))
    results = read_mapping(folder / "run" / "results.json")["model"]
    print(
        f"tuning: {results['steps']} steps, {results['tokens']} tokens, {results['seconds']:.0f} s; loss of the first"
        f" {few} steps {first:.3f}, of the last {last:.3f}"
    )
    for row in read_jsonl(folder / "run" / "model" / "metrics.jsonl"):
        if told := {key: value for key, value in row.items() if key.startswith("heldout")}:
            print(f"  after step {row['step']}: {told}")
    return folder / "run" / "model"


def asked(
    instances: Sequence[Instance], trees: Path, model: Path, words: Path, budget: int, most: int, out: Path
) -> dict[str, Prediction]:
    """The answers of a model, in bf16."""
    config = InferConfig(context="oracle-collapsed", budget=budget, max_tokens=most)
    endpoint = Endpoint(backend="local", model=str(model), precision="bf16", concurrency=8)
    workspaces = open_workspaces(SandboxConfig(), trees)
    count = counter_of(Vocabulary.find(words).load())
    started = time.monotonic()
    found = infer(instances, workspaces, endpoint, config, out, count)
    print(f"  {len(found)} answers: {time.monotonic() - started:.0f} s", flush=True)
    return {each.instance_id: each for each in found}


def well_formed(patch: str | None) -> bool:
    """Whether there are files and hunks, each with as many lines as it says."""
    files = read_diff(patch or "")
    whole = bool(files) and all(file.hunks for file in files)
    return whole and "recount" not in repair_patch(patch or "", "recount")[1]


def figures(
    instances: Sequence[Instance], trees: Path, predictions: Mapping[str, Prediction], out: Path
) -> dict[str, int]:
    """How many are well-formed, apply, and resolve."""
    judge = open_judge(SandboxConfig(timeout_s=120), trees)
    found = {"answers": len(predictions), "copies": 0, "patches": 0, "well-formed": 0}
    for each in predictions.values():
        found["copies"] += _COPIED in str(each.extra.get("full_output"))
        found["patches"] += bool(read_diff(each.patch or ""))
        found["well-formed"] += well_formed(each.patch)
    named = {name: Prediction(name, "model", each.patch, each.extra) for name, each in predictions.items()}
    for level, label in (("raw", ""), ("anchor", ", moved")):
        patches, _ = repaired(named, instances, judge, level)
        done = evaluate(instances, patches, judge, out, level, 1)
        found[f"applied{label}"] = sum(bool(each.applied_by) for each in done.results.values())
        found[f"resolved{label}"] = done.share.resolved
    return found


def main() -> None:
    """All steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--mined", type=Path, nargs="*", default=[])
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument(
        "--require", action="append", default=[], help="what the tests of the second need beside pytest"
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--bugs", type=int, default=120)
    parser.add_argument("--tested", type=int, default=24)
    parser.add_argument("--mined-most", type=int, default=24, help="of the mined instances")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--answer-tokens", type=int, default=240, help="the most of an answer")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    train = untested(options.train, options.work / "train", options.bugs)
    test = bugs(options.test, options.work / "test", options.tested, options.require)
    sets = {"bugs of another package": (load_instances(test), trees_beside(test), _TOKENS_OF_BUGS)}
    for number, path in enumerate(options.mined):
        known = load_instances(path)
        sets[f"mined {number}"] = (known, trees_beside(path), _TOKENS_OF_MINED)
    rows: dict[str, dict[str, dict[str, int]]] = {}
    for name in ("before", "after"):
        model = options.model
        if name == "after":
            model = tuned(options.model, train, test, options.work / "tuned", options.steps)
        left = options.mined_most
        for label, (instances, trees, budget) in sets.items():
            own = instances
            if label.startswith("mined"):
                own, left = instances[:left], max(0, left - len(instances))
            if not own:
                continue
            place = options.work / name / label.replace(" ", "-")
            kept = place / "figures.json"
            if not kept.exists():
                predictions = asked(own, trees, model, options.model, budget, options.answer_tokens, place)
                write_json(kept, figures(own, trees, predictions, place / "evaluation"))
            group = "releases" if label.startswith("mined") else label
            told = rows.setdefault(group, {}).setdefault(name, {})
            for key, value in read_mapping(kept).items():
                told[key] = told.get(key, 0) + value
            print(f"{name}, {label}: {read_mapping(kept)}", flush=True)
    keys = [key for key in next(iter(rows.values()))["before"] if key != "answers"]
    print(f"| | answers | {' | '.join(keys)} |\n|---|---|{'---|' * len(keys)}")
    for group, both in rows.items():
        for name, told in both.items():
            cells = []
            for key in keys:
                share = wilson(told[key], told["answers"])
                low, high = (100 * each for each in share.bounds)
                cells.append(f"{told[key]} ({low:.0f} to {high:.0f} %)")
            print(f"| {group}, {name} | {told['answers']} | {' | '.join(cells)} |")
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
