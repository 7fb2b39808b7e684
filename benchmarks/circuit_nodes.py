"""First-order scores of nodes beside activation patching, on a real model.

    python benchmarks/circuit_nodes.py --model models/smollm2 --examples 8 --out nodes.jsonl
    python benchmarks/circuit_nodes.py --model runs/demo/upcycled --experts --method eap --method eap-ig \
        --data runs/demo-circuit/examples/examples.jsonl --tokenizer runs/demo/tokenizer --out experts.jsonl

Each writer alone (an MLP, a head, the embeddings) is replaced for all its readers by what it gives on the corrupted
input, in the whole model; by how much the logit difference falls is its exact effect, the mean over the examples. The
score of a writer by a first-order method is the sum of the scores of its edges, as in `nap`. Printed is Pearson's
correlation of both over all MLPs and over all heads, with the 95 % interval of Fisher's transformation, and that of
ranks. With --experts each expert of a mixture is a writer, and their exact effects are printed by layer. The effects
are kept in --out, a line for each writer, so that a run that was stopped goes on; a file of another model, task,
tokenizer or number of examples, or of other writers, is refused. With --data the task is a file of one's own, of which
the split `test` is taken if there is one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

METHODS = ("relp", "eap", "eap-ig")
_BATCH = 4


def main() -> None:
    from scipy.stats import spearmanr

    from lmlab.data.tokenizer import Tokenizer
    from lmlab.files import write_jsonl
    from lmlab.hardware import reuse_memory
    from lmlab.methods.edge_pruning import GraphOptions, TaskOptions, generate
    from lmlab.methods.edge_pruning.examples.examples import splits_of
    from lmlab.methods.edge_pruning.examples.load import load
    from lmlab.methods.edge_pruning.masking.metrics import values
    from lmlab.methods.edge_pruning.search.attribution import attribute
    from lmlab.progress import console

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--data", type=Path, help="in place of --task")
    parser.add_argument("--tokenizer", type=Path, help="with --data: where it is not in the model's folder")
    parser.add_argument("--experts", action="store_true", help="experts of a mixture are writers")
    parser.add_argument("--method", action="append", help=f"by default {', '.join(METHODS)}; also atp-star")
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    console.quiet = True
    reuse_memory()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as directory:
        path, split = arguments.data, None
        if path is None:
            path = Path(directory) / "examples.jsonl"
            write_jsonl(path, generate(arguments.task, Tokenizer.load(arguments.model), arguments.examples))
        else:
            split = "test" if "test" in splits_of(path) else None
        given = {"split": split, "num_examples": arguments.examples, "tokenizer": arguments.tokenizer}
        options = TaskOptions(data=path, device="cpu", batch_size=_BATCH, **given)
        graph_options = GraphOptions(moe="expert") if arguments.experts else None
        task, _ = load(arguments.model, options).task("interchange", graph_options, options)
    graph = task.masked.graph
    known = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    about = [
        str(arguments.model),
        str(arguments.data or arguments.task),
        None if arguments.tokenizer is None else str(arguments.tokenizer),
        len(task.examples),
        arguments.experts,
    ]
    for each in known:
        if each.get("of") != about:
            parser.error(f"{arguments.out} holds effects of {each.get('of', 'what it does not name')}, not of {about}")
    effects = {each["writer"]: each["effect"] for each in known}
    begin = time.process_time()
    with torch.no_grad(), arguments.out.open("a") as file:
        for number, writer in enumerate(graph.writers):
            if writer in effects:
                continue
            z_1E = (graph.edge_writers != number).to(task.masked.ones())[None]
            fallen = 0.0
            for index_B in task.batches():
                changed = task.outputs(task.masked(task.inputs(index_B), z_1E))
                whole, without = (
                    values(task, each, index_B, "logit_difference") for each in (task.full(index_B), changed)
                )
                fallen += float((whole - without).sum())
            effects[writer] = fallen / len(task.examples)
            file.write(json.dumps({"of": about, "writer": writer, "effect": effects[writer]}) + "\n")
            file.flush()
    print(
        f"{len(effects)} writers patched on {len(task.examples)} examples of {arguments.data or arguments.task}:"
        f" {time.process_time() - begin:.0f} s of processor time, load {os.getloadavg()[0]:.1f}"
    )
    if arguments.experts:
        for layer in range(graph.config.num_layers):
            own = {name: effect for name, effect in effects.items() if name.startswith(f"m{layer}.")}
            print(f"layer {layer}: " + ", ".join(f"{name} {effect:.3f}" for name, effect in own.items()))
        heads = sorted(((effect, name) for name, effect in effects.items() if name[0] == "a"), reverse=True)
        print("heads: " + ", ".join(f"{name} {effect:.3f}" for effect, name in heads[:5]))
    kinds = {
        "experts" if arguments.experts else "MLPs": [name.startswith("m") for name in graph.writers],
        "heads": [name.startswith("a") for name in graph.writers],
    }
    exact_W = np.array([effects[writer] for writer in graph.writers])
    for method in arguments.method or METHODS:
        begin = time.process_time()
        scores_E = attribute(task, method, metric="logit_difference")
        seconds = time.process_time() - begin
        found_W = torch.zeros(len(graph.writers), dtype=torch.float64)
        found_W = found_W.index_add(0, graph.edge_writers, scores_E.double()).numpy()
        # what has no signs is set beside sizes
        known_W = np.abs(exact_W) if method == "atp-star" else exact_W
        figures = []
        for kind, chosen in kinds.items():
            r, rank = np.corrcoef(found_W[chosen], known_W[chosen])[0, 1], spearmanr(found_W[chosen], known_W[chosen])
            reach = 1.96 / math.sqrt(sum(chosen) - 3)
            low, high = (math.tanh(math.atanh(r) + sign * reach) for sign in (-1, 1))
            figures.append(
                f"{kind} (n = {sum(chosen)}) {r:.3f} ({low:.3f} to {high:.3f}), by rank {rank.statistic:.3f}"
            )
        print(f"{method}: {'; '.join(figures)}; {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
