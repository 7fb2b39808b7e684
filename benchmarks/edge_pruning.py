"""Edge pruning beside its peers: time and memory of a step, methods on compiled programs and on a trained model, a
circuit of SmolLM2.

    python benchmarks/edge_pruning.py step --reference ~/Edge-Pruning/src/modeling --transformers ~/transformers-4.40
    python benchmarks/edge_pruning.py tracr
    python benchmarks/edge_pruning.py induction
    python benchmarks/edge_pruning.py small --out DIR [--layers 4] [--experts 4]
    python benchmarks/edge_pruning.py ioi --model models/smollm2

`step` runs lmlab and the reference implementation (princeton-nlp/Edge-Pruning) in turns, each in a process of its own,
on GPT-2's shape with random weights. Its model file needs a transformers of that time: pip install --no-deps --target
DIR transformers==4.40.2 tokenizers==0.19.1 huggingface_hub==0.23.4. `small` trains the model of `induction` and
writes it to DIR/model, and examples to DIR/examples.jsonl, for benchmarks/circuit_curves.py; with --experts its feed-
forward networks are gated, and the trained model becomes a mixture of that many experts, two of which a token takes,
and is trained on for half as many steps, for benchmarks/circuit_nodes.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

_GPT2 = {
    "vocab_size": 50_257,
    "num_layers": 12,
    "d_model": 768,
    "num_heads": 12,
    "max_seq_len": 1024,
    "norm": "layernorm",
    "positions": "learned",
    "activation": "gelu_tanh",
    "gated": False,
    "qkv_bias": True,
    "attention_output_bias": True,
    "ffn_bias": True,
    "norm_bias": True,
}


def _tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, _GPT2["vocab_size"], (2, batch, length), generator=torch.Generator().manual_seed(0))


def lmlab_step(batch: int, length: int, steps: int, recompute: bool) -> dict[str, float]:
    """Training steps of gates through the step function of lmlab; activations of the batch are cached, as in every
    training.
    """
    from lmlab.hardware import reuse_memory
    from lmlab.methods.edge_pruning import CircuitGraph, Counterfactuals, EdgePruningConfig, MaskedModel, make_examples
    from lmlab.methods.edge_pruning.masking.gates import Gates
    from lmlab.methods.edge_pruning.search.prune import PruningStep
    from lmlab.models import ModelConfig, Transformer

    reuse_memory()
    model = Transformer(ModelConfig(**_GPT2)).initialize(0)
    clean, corrupted = _tokens(batch, length).tolist()
    graph = CircuitGraph(model.config)
    task = Counterfactuals(
        MaskedModel(model, graph, recompute), make_examples(clean, corrupted, [[length - 1]] * batch), batch_size=batch
    )
    gates = Gates(3 + 0.01 * torch.randn(graph.num_edges), graph.edge_writers)
    step = PruningStep(task, EdgePruningConfig(target=0.95, normalize=False))
    optimizer = torch.optim.AdamW(gates.parameters(), lr=0.1, weight_decay=0)
    return _run(
        steps,
        lambda: step(gates, {"example": torch.arange(batch)}).loss_sum / batch,
        optimizer,
        lambda: step.after_step(gates),
    )


def reference_step(batch: int, length: int, steps: int) -> dict[str, float]:
    """The same by the reference: whole model, corrupted run, masked run, KL and penalty, as its training script has
    them.
    """
    from modeling_fpt2 import FPT2LMHeadModel
    from transformers import GPT2Config

    torch.manual_seed(0)
    full, model = (FPT2LMHeadModel(GPT2Config(), with_embedding_nodes=True) for _ in range(2))
    full.reset_all_log_alphas()
    full.eval()
    model.reset_all_log_alphas()
    model.load_state_dict(full.state_dict())
    trained = [
        parameter for name, parameter in model.named_parameters() if "log_alpha" in name or "sparsity_lambda" in name
    ]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    clean, corrupted = _tokens(batch, length)
    optimizer = torch.optim.AdamW(trained, lr=0.8)
    model.train()

    def loss() -> torch.Tensor:
        with torch.no_grad():
            expected = full(input_ids=clean).logits
            other = full(input_ids=corrupted, output_writer_states=True).writer_states.transpose(0, 1)
        out = model(input_ids=clean, corr_x=other, target_edge_sparsity=0.5, target_node_sparsity=0.0)
        ours, theirs = (each[:, -1].log_softmax(-1) for each in (out["logits"], expected))
        return torch.nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True) + out["edge_loss"]

    return _run(steps, loss, optimizer, lambda: None)


def _run(steps, loss, optimizer, after) -> dict[str, float]:
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(steps + 1):
        start = time.process_time()
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        after()
        seconds.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": median(seconds[1:]), "peak": peak * 1024, "above": (peak - before) * 1024}


def step(arguments: argparse.Namespace) -> None:
    if arguments.child:
        torch.set_num_threads(arguments.threads)
        size = (arguments.batch, arguments.length, arguments.steps)
        print(
            "RESULT",
            json.dumps(
                reference_step(*size)
                if arguments.child == "reference"
                else lmlab_step(*size, arguments.child == "recomputing")
            ),
        )
        return
    kinds = ["lmlab", "recomputing", *(["reference"] if arguments.reference else [])]
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for turn in range(arguments.turns):
        for kind in kinds:
            command = [
                sys.executable,
                __file__,
                "step",
                "--child",
                kind,
                "--steps",
                str(arguments.steps),
                "--threads",
                str(arguments.threads),
            ]
            command += ["--batch", str(arguments.batch), "--length", str(arguments.length)]
            given = (arguments.transformers, arguments.reference) if kind == "reference" else ()
            paths = [str(path) for path in given if path is not None]
            done = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
            )
            if "RESULT" not in done.stdout:
                raise SystemExit(f"{kind} failed:\n{done.stderr[-3000:]}")
            found[kind].append(json.loads(done.stdout.split("RESULT")[1]))
            figures = found[kind][-1]
            print(
                f"turn {turn + 1}, {kind}: {figures['seconds']:.2f} s a step, {figures['above'] / 2**30:.2f} GiB above"
                " what was loaded",
                flush=True,
            )
    best = {
        kind: (median(each["seconds"] for each in rows), median(each["above"] for each in rows))
        for kind, rows in found.items()
    }
    if arguments.reference:
        for kind in kinds[:-1]:
            seconds, memory = best["reference"][0] / best[kind][0], best[kind][1] / best["reference"][1]
            print(f"{kind}: {seconds:.1f} times as fast as the reference, {memory:.2f} of its memory")


def tracr(arguments: argparse.Namespace) -> None:
    """Exact recovery of known circuits over seeds, and every method beside."""
    from lmlab.methods.edge_pruning import (
        CircuitGraph,
        Counterfactuals,
        EdgePruningConfig,
        FindConfig,
        MaskedModel,
        auroc,
        load_tracr,
        measure,
        ranking,
        search,
    )
    from lmlab.methods.edge_pruning.examples.tracr import EMBEDDINGS
    from lmlab.methods.edge_pruning.search.prune import decide, train_gates
    from lmlab.progress import console

    console.quiet = True
    folder = Path(os.environ.get("LMLAB_SHARED", "../shared")) / "data" / "tracr"
    for program in sorted(path for path in folder.iterdir() if path.is_dir()):
        for ablation in ("zero", "interchange"):
            read = load_tracr(program)
            masked = MaskedModel(read.model, CircuitGraph(read.model.config, embedding_names=EMBEDDINGS))
            task = Counterfactuals(masked, read.examples, ablation, batch_size=256)
            known_E = masked.graph.mask(read.ground_truth[ablation])
            print(f"\n{program.name}, {ablation}: {int(known_E.sum())} of {len(known_E)} edges")
            for samples in ("per_example", "per_step"):
                config = EdgePruningConfig(price=0.01, steps=250, batch_size=32, mask_samples=samples)
                start, exact, raw = time.process_time(), 0, 0
                for seed in range(arguments.seeds):
                    with tempfile.TemporaryDirectory() as directory:
                        gates = train_gates(task, config, seed, Path(directory))
                    exact += torch.equal(decide(task, config, gates).kept_E, known_E)
                    raw += torch.equal(decide(task, config.model_copy(update={"polish": False}), gates).kept_E, known_E)
                seconds = (time.process_time() - start) / arguments.seeds
                name = f"edge-pruning, masks {samples.replace('_', ' ')}"
                print(
                    f"  {name:36} exact {exact}/{arguments.seeds}, without polish {raw}/{arguments.seeds},"
                    f" {seconds:.1f} s a run"
                )
            for method in ("acdc", "eap", "eap-ig", "mask-ig", "exact", "node-pruning", "random"):
                start = time.process_time()
                size = {"threshold": 0.001} if method == "acdc" else {"num_edges": int(known_E.sum())}
                found = search(
                    task, FindConfig(method=method, ablation=ablation, pruning={"steps": 300, "batch_size": 64}, **size)
                )
                seconds = time.process_time() - start
                same, distance = (
                    torch.equal(found.kept_E, known_E),
                    measure(task, found.kept_E)["distance"] / task.empty_distance,
                )
                ranked_E = ranking(method, found.scores_E)
                figures = f"distance {distance:.3f} of empty, AUROC {auroc(ranked_E, known_E):.3f}, {seconds:.1f} s"
                print(f"  {method:36} exact {'yes' if same else 'no':3}, {figures}")


def train_induction(directory: Path, steps: int = 600, layers: int = 2, experts: int = 0):
    """A GPT-2-like model of few layers that learns what follows a token that was there before: 13 random ones, then
    pairs out of them. With experts it is upcycled then, and trained on.
    """
    import numpy as np

    from lmlab.data import Loader
    from lmlab.methods.olmoe import UpcycleConfig, upcycle
    from lmlab.models import ModelConfig, Transformer
    from lmlab.train import OptimizerConfig, ScheduleConfig, Trainer, TrainerConfig, language_model_step

    vocab, text, pairs = 32, 13, 6

    class Recalled:
        def __len__(self) -> int:
            return 1_000_000

        def __getitem__(self, index: int):
            draws = np.random.default_rng(index)
            tokens = draws.permutation(vocab)[:text]
            places = draws.integers(0, text - 2, pairs)
            row = np.concatenate((tokens, np.stack((tokens[places], tokens[places + 1]), 1).ravel()))
            labels = np.full(len(row), -100)
            labels[text::2] = tokens[places + 1]
            return {"input_ids": row, "labels": labels, "document_ids": np.zeros(len(row), dtype=np.int64)}

    length = text + 2 * pairs
    shape = {
        **_GPT2,
        "vocab_size": vocab,
        "num_layers": layers,
        "d_model": 64,
        "num_heads": 4,
        "max_seq_len": length,
        "tie_embeddings": False,
        "init_std": 0.1,
    }
    if experts:
        shape |= {"gated": True, "activation": "silu", "ffn_bias": False}
    model = Transformer(ModelConfig(**shape)).initialize(0)

    def fit(trained: Transformer, steps: int, rate: float, seed: int, into: Path) -> None:
        config = TrainerConfig(
            steps=steps,
            batch_size=64,
            optimizer=OptimizerConfig(learning_rate=rate, weight_decay=0.01, betas=(0.9, 0.98)),
            schedule=ScheduleConfig(kind="cosine"),
            precision="fp32",
            device="cpu",
            checkpoint_every=10_000,
        )
        Trainer(trained, language_model_step, Loader(Recalled(), 64, seed), config, into).fit()

    fit(model, steps, 2e-3, 0, directory)
    if experts:
        model = upcycle(model, UpcycleConfig(num_experts=experts, top_k=2, noise=0.5))
        fit(model, steps // 2, 2e-3, 1, directory / "upcycled")
    return model, vocab


def induction(arguments: argparse.Namespace) -> None:
    """Every method on a trained model whose mechanism is known: heads that look one token back feed keys of induction
    heads.
    """
    from lmlab.methods.edge_pruning import (
        CircuitGraph,
        Counterfactuals,
        Ends,
        FindConfig,
        MaskedModel,
        areas,
        curve,
        make_examples,
        measure,
        ranking,
        search,
    )
    from lmlab.methods.edge_pruning.examples.tasks import induction_row
    from lmlab.models.internals.taps import Recorder
    from lmlab.progress import console

    console.quiet = True
    with tempfile.TemporaryDirectory() as directory:
        start = time.process_time()
        model, vocab = train_induction(Path(directory))
        print(f"trained in {time.process_time() - start:.0f} s")
    draws = random.Random(0)
    rows = [induction_row(range(vocab), draws, 14) for _ in range(128)]
    examples = make_examples(
        *([row[key] for row in rows] for key in ("clean", "corrupted")),
        [[len(row["clean"]) - 1] for row in rows],
        *([row[key] for row in rows] for key in ("answer", "distractor")),
    )
    train, test = examples.take(slice(64)), examples.take(slice(64, None))
    seen = Recorder("blocks.*.attention.pattern")
    with torch.no_grad():
        model(examples.clean, taps=seen)
    previous = seen["blocks.0.attention.pattern"].diagonal(-1, 2, 3).mean((0, 2))
    places = (examples.clean == examples.clean[:, -1:]).long().argmax(1) + 1
    inducing = seen["blocks.1.attention.pattern"][torch.arange(len(places)), :, -1, places].mean(0)
    first, second = int(previous.argmax()), int(inducing.argmax())
    source, key = f"a0.h{first}", f"a1.h{second}.k"
    ways = ({(source, key)}, {(source, "m0"), ("m0", key)})  # straight, or by way of the first feed-forward layer
    print(
        f"previous-token head a0.h{first} ({previous.max():.2f} of its attention), induction head a1.h{second}"
        f" ({inducing.max():.2f})"
    )
    graph = CircuitGraph(model.config)
    tasks = [Counterfactuals(MaskedModel(model, graph), each, batch_size=64) for each in (train, test)]
    ends, count = Ends.of(tasks[1]), round(0.17 * graph.num_edges)
    print(
        f"model: logit difference {ends.full['logit_difference']:.2f}, accuracy {ends.full['accuracy']:.2f}; {count} of"
        f" {graph.num_edges} edges kept"
    )
    for method in ("edge-pruning", "acdc", "eap", "eap-ig", "mask-ig", "exact", "node-pruning", "random"):
        start = time.process_time()
        pruning = {"steps": 600, "batch_size": 32, "polish": False}
        found = search(tasks[0], FindConfig(method=method, num_edges=count, pruning=pruning))
        seconds, figures = time.process_time() - start, measure(tasks[1], found.kept_E)
        area = areas(curve(tasks[1], ranking(method, found.scores_E), ends))
        print(
            f"  {method:13} {int(found.kept_E.sum()):3} edges, distance"
            f" {figures['distance'] / ends.empty['distance']:6.3f} of empty, faithfulness"
            f" {ends.faithfulness(figures):6.3f}, CMD {area['cmd']:.3f}, CPR {area['cpr']:.3f},"
            f" {'has' if any(way <= set(graph.edges(found.kept_E)) for way in ways) else 'lacks'} {source} -> {key},"
            f" {seconds:.1f} s"
        )
    print("to equal distance: ACDC at falling thresholds against edge-pruning")
    start = time.process_time()
    best = search(tasks[0], FindConfig(price=0.003, pruning={"steps": 300, "batch_size": 32}))
    seconds, goal = time.process_time() - start, measure(tasks[1], best.kept_E)["distance"]
    print(
        f"  edge-pruning {int(best.kept_E.sum())} edges, distance {goal / ends.empty['distance']:.3f} of empty,"
        f" {seconds:.1f} s"
    )
    total = 0.0
    for threshold in (0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001):
        start = time.process_time()
        found = search(tasks[0], FindConfig(method="acdc", threshold=threshold))
        total += time.process_time() - start
        distance = measure(tasks[1], found.kept_E)["distance"]
        print(
            f"  acdc {threshold}: {int(found.kept_E.sum())} edges, distance {distance / ends.empty['distance']:.3f} of"
            f" empty, {total:.1f} s so far"
        )
        if distance <= goal:
            break


def small(arguments: argparse.Namespace) -> None:
    """A model of few layers whose edges can all be tried, and its examples: 32 to search on, 64 to measure on."""
    from lmlab.files import write_jsonl
    from lmlab.methods.edge_pruning.examples.tasks import induction_row
    from lmlab.models import save_pretrained

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as directory:
        start = time.process_time()
        model, vocab = train_induction(Path(directory), layers=arguments.layers, experts=arguments.experts)
        print(f"trained in {time.process_time() - start:.0f} s of processor time")
    save_pretrained(model, arguments.out / "model")
    draws, counts = random.Random(0), {"train": 32, "test": 64}
    rows = [{**induction_row(range(vocab), draws, 14), "split": split} for split, n in counts.items() for _ in range(n)]
    write_jsonl(arguments.out / "examples.jsonl", rows)


def ioi(arguments: argparse.Namespace) -> None:
    """Indirect objects on a real model: circuits of equal size by three methods, on held-out templates, and curves by
    rank.
    """
    from lmlab.data.tokenizer import Tokenizer
    from lmlab.files import write_json, write_jsonl
    from lmlab.hardware import reuse_memory
    from lmlab.methods.edge_pruning import Ends, FindConfig, areas, curve, generate, measure, ranking, search, top_edges
    from lmlab.methods.edge_pruning.examples.load import load

    reuse_memory()
    torch.set_num_threads(arguments.threads)
    words, tasks = Tokenizer.load(arguments.model), {}
    with tempfile.TemporaryDirectory() as directory:
        for split, count in (("train", arguments.examples), ("validation", 16), ("test", arguments.examples)):
            path = Path(directory) / f"{split}.jsonl"
            write_jsonl(path, generate("ioi", words, count, split=split))
            tasks[split], lines = load(arguments.model, path, device="cpu").task("interchange", batch_size=4)
    print("\n".join(lines))
    ends = {split: Ends.of(tasks[split]) for split in ("validation", "test")}
    graph = tasks["train"].masked.graph
    results = {}
    for method in ("edge-pruning", "eap-ig", "eap", "random"):
        start = time.process_time()
        extra = {}
        if method == "edge-pruning":
            pruning = {
                "steps": arguments.steps,
                "batch_size": 4,
                "learning_rate": arguments.learning_rate,
                "polish": False,
            }
            extra = {"price": arguments.price, "warm_start": True, "pruning": pruning}
        found = search(
            tasks["train"], FindConfig(method=method, num_edges=round(arguments.share * graph.num_edges), **extra)
        )
        seconds = time.process_time() - start
        ranked = ranking(method, found.scores_E)
        rows = curve(tasks["test"], ranked, ends["test"], (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 1.0))
        results[method] = {"seconds": seconds, **areas(rows), "curve": rows}
        for split in ("validation", "test"):
            figures = measure(tasks[split], top_edges(tasks[split], ranked, round(arguments.share * graph.num_edges)))
            results[method][split] = {**figures, "faithfulness": ends[split].faithfulness(figures)}
        print(f"{method}: {seconds:.0f} s, CMD {results[method]['cmd']:.3f}, CPR {results[method]['cpr']:.3f}")
        for split in ("validation", "test"):
            each = results[method][split]
            print(
                f"  {split:10} KL {each['distance']:.3f}, logit difference {each['logit_difference']:.2f}, "
                f"accuracy {each['accuracy']:.2f}, "
                f"exact match {each['exact_match']:.2f}, faithfulness {each['faithfulness']:.3f}"
            )
        for row in rows:
            print(
                f"    {100 * row['fraction']:5.1f} %, {row['edges']:6} edges: KL {row['distance']:.3f}, faithfulness"
                f" {row['faithfulness']:.3f}"
            )
        if arguments.out:
            write_json(arguments.out, {"methods": results, "full": ends["test"].full, "empty": ends["test"].empty})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["step", "tracr", "induction", "small", "ioi"])
    parser.add_argument("--reference", type=Path, help="src/modeling of the reference implementation")
    parser.add_argument("--transformers", type=Path, help="a folder with a transformers that it can import")
    parser.add_argument("--child", choices=["lmlab", "recomputing", "reference"], help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--layers", type=int, default=2, help="of `small`")
    parser.add_argument("--experts", type=int, default=0, help="of `small`: upcycle the model to so many")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--price", type=float, default=2e-4)
    parser.add_argument("--learning-rate", type=float, default=0.3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    for part, option in (("small", "out"), ("ioi", "model")):  # told before a model is trained or read
        if arguments.part == part and getattr(arguments, option) is None:
            parser.error(f"{part} needs --{option} DIR")
    {"step": step, "tracr": tracr, "induction": induction, "small": small, "ioi": ioi}[arguments.part](arguments)


if __name__ == "__main__":
    main()
