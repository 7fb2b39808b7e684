"""Transformer Programs: what training reaches and costs, and how fast programs run beside row look-ups.

    python benchmarks/programs.py speed DIRECTORY_OF_A_PROGRAM
    python benchmarks/programs.py train hist --seeds 8 --epochs 20 --set cat_heads=0 --set cat_mlps=0
    python benchmarks/programs.py attention hist --seeds 8 --epochs 20
    python benchmarks/programs.py step hist
    python benchmarks/programs.py estimators sort --seeds 3 --epochs 6
    python benchmarks/programs.py table runs/table --only sort --only reverse
    python benchmarks/programs.py languages runs/languages --only "Dyck 1"
    python benchmarks/programs.py minimize DIRECTORY_OF_PROGRAMS --only rasp/sort
    python benchmarks/programs.py decompile runs/decompile --only "Tomita 2"
    python benchmarks/programs.py text runs/text --source snips --embeddings SmolLM2-135M
    python benchmarks/programs.py text runs/wnut --source wnut17 --embeddings SmolLM2-135M

`train` prints the accuracy of the best seed's program on test beside the paper's, and the CPU seconds of training and
of choosing the seed. `attention` trains the same seeds with the paper's noise in attention and without. `estimators`
trains the same seeds for the same steps with each way of making choices (`--only` some of them). `speed` runs the same
sequences vectorized and by row look-ups in pandas, as the reference's programs do, in one process. `step` is one step
of training beside the reference's, built as that is built (a full-width matrix for each read, one module an MLP, noise
for every choice), in turns in one process; both compute the same loss. `table` is the paper's table: it trains each
task, exports the best seed's program, and prints a row; stopped, the same command goes on, and the CPU seconds of all
attempts are added up. `languages` trains on twenty tasks and languages up to 20 symbols without positions and tests at
up to 60. `text` prints slots and intents of SNIPS, or entities of files with columns such as WNUT-17, beside a unigram
tagger and a bag of words. `decompile` trains small GPT-2s on languages and reads them as programs. `minimize` makes
published programs short and prints their sizes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from program_parts.decompiling import measure_decompiling
from program_parts.languages import measure_languages
from program_parts.minimizing import measure_minimizing
from program_parts.text import measure_text

from lmlab.files import read_json, write_json
from lmlab.hardware import machine_load
from lmlab.methods.transformer_programs import Interpreter, TrainSettings, load_program, train
from lmlab.methods.transformer_programs.analysis.export import export_program
from lmlab.methods.transformer_programs.config import ExportOptions
from lmlab.methods.transformer_programs.network.model import Attention, ProgramTransformer, nearness
from lmlab.methods.transformer_programs.tasks.load import load_data
from lmlab.methods.transformer_programs.training.fit import spec_of
from lmlab.methods.transformer_programs.training.packed import PackedNetworks
from lmlab.methods.transformer_programs.training.run import TrainedNetworks
from lmlab.methods.transformer_programs.training.step import ProgramStep, Temperature

ESTIMATORS: dict[str, dict[str, Any]] = {
    "paper": {},
    "paper, to 0.3": {"tau_end": 0.3},
    "without noise in attention, to 0.3": {"tau_end": 0.3, "attention_noise": False},
    "1 to 0.3": {"tau_start": 1.0, "tau_end": 0.3},
    "cosine, to 0.3": {"tau_end": 0.3, "schedule": "cosine"},
    "nearest, to 0.3": {"tau_end": 0.3, "attention": "nearest"},
    "gumbel_hard, to 0.3": {"sampling": "gumbel_hard", "tau_end": 0.3},
    "decoupled, gradients at 1, to 0.1": {"sampling": "decoupled", "gradient_tau": 1.0, "tau_end": 0.1},
    "hard, gradients at 1": {"sampling": "hard", "gradient_tau": 1.0},
    "reinmax, 1 to 0.1": {"sampling": "reinmax", "tau_start": 1.0, "tau_end": 0.1},
    "entmax, alpha 1 to 2, 1 to 0.3": {
        "sampling": "entmax", "alpha_start": 1.0, "alpha_end": 2.0, "tau_start": 1.0, "tau_end": 0.3,
        "attention_noise": False,
    },
    "entmax, alpha 1.5, to 0.1": {"sampling": "entmax", "tau_end": 0.1, "attention_noise": False},
    "sparsemax, to 0.3": {"sampling": "sparsemax", "tau_end": 0.3, "attention_noise": False},
    "softmax, to 0.1": {"sampling": "softmax", "tau_end": 0.1, "attention_noise": False},
    "frozen from 0.7 on, to 0.3": {"tau_end": 0.3, "freeze": 0.7},
    "frozen after 100 steps of rest, to 0.3": {"tau_end": 0.3, "freeze_after": 100},
    "families, to 0.3": {"tau_end": 0.3, "predicates": "families"},
}  # fmt: skip
"""Ways of making choices: the paper's falls from a temperature of 3 to 0.01."""

PAPER = {
    "reverse": 99.79, "hist": 100.0, "double_hist": 98.40, "sort": 99.83, "most_freq": 75.69, "dyck1": 99.30,
    "dyck2": 99.09,
}  # fmt: skip
REPEATS = 3
_EXHAUSTIVE = 20_000  # inputs: all of sort and reverse; the other tasks' are compared on their splits and at random

_COMMON = {"batch_size": 128, "d_mlp": 32, "tau_end": 0.1, "evaluations": 8, "checkpoint_every": 200}
_SHAPE = ("num_layers", "cat_heads", "num_heads", "cat_mlps", "num_mlps")
_DECOUPLED = {"sampling": "decoupled", "gradient_tau": 1.0}
_WIDE = {"vocab_size": 8, "max_length": 16}
_LARGE = {"vocab_size": 16, "max_length": 16}
_NEAREST = {"attention": "nearest"}
_RULES = {"predicates": "families"}
TABLE: dict[str, tuple[tuple[int, ...], int, int, float, dict[str, Any]]] = {
    # layers, heads and MLPs of both kinds (as _SHAPE), seeds, halvings, epochs, other settings
    "hist": ((1, 0, 4, 0, 1), 4, 1, 8, _DECOUPLED),
    "sort": ((1, 4, 4, 2, 2), 8, 3, 60, _DECOUPLED),
    "reverse": ((3, 4, 4, 1, 1), 4, 2, 30, {**_NEAREST, "tau_end": 0.05}),
    "double_hist": ((2, 1, 4, 0, 4), 4, 2, 15, {}),
    "most_freq": ((3, 6, 6, 2, 2), 4, 2, 80, {"learning_rate": 0.02}),
    "dyck1": ((3, 4, 4, 1, 1), 4, 2, 48, {"learning_rate": 0.02, "polish": 4}),
    "dyck2": ((3, 4, 4, 1, 1), 1, 0, 60, {**_NEAREST, "learning_rate": 0.02}),
    "double_hist 8x16": ((2, 1, 4, 0, 4), 4, 2, 20, _WIDE),
    "double_hist 16x16": ((2, 0, 4, 0, 4), 2, 0, 16, {**_LARGE, **_RULES, "schedule": "cosine", "tau_end": 0.05}),
    "reverse 8x16": ((2, 4, 2, 2, 1), 1, 0, 8, {**_WIDE, **_RULES, "tau_end": 0.05}),
    "sort 8x16": ((1, 0, 12, 0, 0), 1, 0, 14, {**_WIDE, **_RULES, "schedule": "cosine"}),
    "sort 16x16": ((1, 0, 24, 0, 0), 1, 0, 16, {**_LARGE, **_RULES, "schedule": "cosine"}),
    "hist 16x16": ((1, 0, 4, 0, 1), 1, 0, 3, {**_LARGE, **_DECOUPLED}),
    "most_freq 8x16": ((3, 4, 4, 2, 2), 1, 0, 14, {**_WIDE, "learning_rate": 0.02, "polish": 1}),
    "reverse 16x16": ((3, 4, 4, 1, 1), 1, 0, 12, {**_LARGE, **_NEAREST, "tau_end": 0.05}),
    "most_freq 16x16": ((3, 4, 4, 2, 2), 1, 0, 10, {**_LARGE, "learning_rate": 0.02, "polish": 1}),
}
PUBLISHED = {"seeds": 5, "epochs": 250, "batch_size": 512, "d_mlp": 64}
"""What the paper trains for each of the eight shapes of its grid."""
PUBLISHED_SHAPES = {  # the best of the grid, as _SHAPE
    "reverse": (3, 4, 4, 1, 1), "hist": (1, 2, 2, 1, 1), "double_hist": (3, 2, 2, 1, 1), "sort": (3, 4, 4, 2, 2),
    "most_freq": (3, 4, 4, 2, 2), "dyck1": (3, 4, 4, 1, 1), "dyck2": (3, 2, 2, 2, 2),
}  # fmt: skip


def measure_training(task: str, seeds: int, epochs: float, changes: dict[str, Any]) -> dict[str, Any]:
    """Train and measure; the summary."""
    settings = TrainSettings(**{"task": task, "seeds": seeds, "epochs": epochs, "evaluations": 2, **changes})
    with tempfile.TemporaryDirectory() as directory:
        before = time.process_time()
        results = train(settings, directory)
        cpu = time.process_time() - before
    found = [round(100 * row["valid_accuracy"], 2) for row in results["seeds"]]
    near = sum(each >= max(found) - 1 for each in found)
    print(
        f"{task}: program {100 * results['test_accuracy']:.2f} % on test (paper {PAPER.get(task, float('nan'))} %),"
        f" sequences {100 * results['test_sequence_accuracy']:.2f} %, {cpu:.0f} CPU-s for {seeds} seeds x {epochs:g}"
        f" epochs with data and choice; {near} of {seeds} seeds within a point of the best; settings {changes};"
        f" load {machine_load()}",
        flush=True,
    )
    return results


def points(share: float | None) -> float | None:
    """A share as percent."""
    return None if share is None else round(100 * share, 2)


def measure_estimators(task: str, seeds: int, epochs: float, only: list[str], changes: dict[str, Any]) -> None:
    """The same seeds and steps with each estimator; all seeds are polished."""
    shape = dict(zip(_SHAPE, TABLE[task][0], strict=True))
    for name, how in ESTIMATORS.items():
        if only and not any(name.startswith(word) for word in only):
            continue
        settings = TrainSettings(
            task=task, seeds=seeds, epochs=epochs, polish=seeds,
            **{"batch_size": 128, "d_mlp": 32, "checkpoint_every": 10**6, **shape, **how, **changes},
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as directory:
            before = time.process_time()
            results = train(settings, directory)
            cpu = time.process_time() - before
        found, early, gaps = (
            [points(row[key]) for row in results["seeds"]]
            for key in ("valid_accuracy", "valid_accuracy_before_polish", "soft_gap")
        )
        print(
            f"{task} | {name} | test {100 * results['test_accuracy']:.2f} % | validation {found}, before polishing"
            f" {early}, gap {gaps} | {cpu:.1f} CPU-s | {seeds} seeds x {epochs:g} epochs | load {machine_load()}",
            flush=True,
        )


def measure_table(directory: Path, only: list[str], changes: dict[str, Any]) -> None:
    """The paper's table, a row a task, and larger vocabularies and lengths."""
    for name in only or TABLE:
        task = name.split()[0]
        shape, seeds, halvings, epochs, more = TABLE[name]
        shaped = dict(zip(_SHAPE, shape, strict=True))
        chosen = {**_COMMON, **shaped, "seeds": seeds, "halvings": halvings, "epochs": epochs, **more, **changes}
        settings = TrainSettings(task=task, **chosen)
        place = directory / name.replace(" ", "-")
        spent = place.with_suffix(".cpu.json")
        earlier = read_json(spent)["seconds"] if spent.exists() else 0.0
        before = time.process_time()
        try:
            results = train(settings, place)
        finally:
            directory.mkdir(parents=True, exist_ok=True)
            write_json(spent, {"seconds": earlier + time.process_time() - before})
        networks, data = TrainedNetworks.find(place), load_data(settings)
        options = ExportOptions(exhaustive=_EXHAUSTIVE)
        manifest = export_program(
            networks.load(), networks.place_of(None), data, place / "program", options, {"task": task}
        )
        cpu, whole_cpu = read_json(spent)["seconds"], earlier + time.process_time() - before
        found = [round(100 * row["valid_accuracy"], 2) for row in results["seeds"]]
        whole = [100 * row["valid_accuracy"] for row in results["seeds"] if not row["stopped"]]
        near = sum(each >= max(found) - 1 for each in whole)
        theirs = published_seconds(settings, data)
        print(
            f"{name}: program {100 * manifest['accuracy']['test']:.2f} % on test (paper {PAPER.get(name, '-')} %),"
            f" equal to its network on {manifest['verification']['places']:,} places,"
            f" {manifest['size']['lines']} lines; {cpu:.0f} CPU-s for {settings.seeds} seeds"
            f" ({settings.halvings} halvings) x {settings.epochs:g} epochs"
            f" with data and choice of the seed, {whole_cpu - cpu:.0f} more for the export;"
            f" {theirs / cpu:.0f} times less than {PUBLISHED['seeds']} seeds x"
            f" {PUBLISHED['epochs']} epochs of the reference's steps ({theirs:.0f} CPU-s); {near} of {len(whole)} seeds"
            f" trained to the end within a point of the best, validation {found}; trained minus program"
            f" {points(results['soft_gap'])} points; {shaped} {more} {changes}; load {machine_load()}",
            flush=True,
        )


def published_seconds(settings: TrainSettings, data: Any) -> float:
    """CPU seconds of the paper's training of its shape, by a step built as the reference's: its forward and backward
    pass, without its optimizer and without its evaluation after every epoch, which is as long again.
    """
    import torch

    batch = min(PUBLISHED["batch_size"], len(data.train))
    shape = dict(zip(_SHAPE, PUBLISHED_SHAPES[settings.task or ""], strict=True))
    plain = {"d_mlp": PUBLISHED["d_mlp"], "predicates": "table", "prefix_count": False}
    as_paper = settings.model_copy(update={**shape, **plain})
    model = ProgramTransformer(spec_of(as_paper, data), [0], Attention(True))
    tokens, labels = data.train.tokens[:batch], data.train.labels[:batch]
    best = float("inf")
    for _ in range(REPEATS):
        before = time.process_time()
        reference_loss(model, tokens, labels, 1.0, noise=True).backward()
        best = min(best, time.process_time() - before)
    assert torch.isfinite(model.unembed.grad).all()
    return best * PUBLISHED["seeds"] * PUBLISHED["epochs"] * -(-len(data.train) // batch)


def reference_loss(model: Any, tokens: Any, labels: Any, tau: float, noise: bool) -> Any:
    """The loss of one seed as the reference computes it: gates become matrices over the whole stream, and MLPs run one
    after another.
    """
    import torch
    from torch.nn.functional import cross_entropy, gumbel_softmax, one_hot

    spec, d = model.spec, model.spec.d_var
    places = tokens.shape[1]

    def sample(logits: Any) -> Any:
        return gumbel_softmax(logits, tau) if noise else torch.softmax(logits / tau, -1)

    def read(gate: Any, stream: Any, width: int) -> Any:
        matrix = torch.einsum("hv,de->hdve", sample(gate), torch.eye(width)).reshape(len(gate), width, -1)
        return torch.einsum("hdp,bnp->bhnd", matrix, stream)

    valid = tokens != 0
    mask = (valid[:, :, None] & valid[:, None, :])[:, None]
    position = torch.arange(places).clamp(max=d - 1).expand_as(tokens)
    cat = torch.cat([one_hot(tokens, d), one_hot(position, d)], -1).float()
    num = torch.ones(*tokens.shape, 1)
    bias = nearness(spec.context, places, tokens.device)
    for block in model.blocks:
        new_cat, new_num = [], []
        first = block.cat_heads
        for heads, is_cat in ((slice(0, first), True), (slice(first, None), False)):
            if not len(block.key[0, heads]):
                continue
            keys, queries = (read(gate[0, heads], cat, d) for gate in (block.key, block.query))
            wanted = torch.einsum("bhnq,hqk->bhnk", queries, sample(block.predicates.table[0, heads]))
            scores = torch.einsum("bhnk,bhmk->bhnm", wanted, keys) * mask
            if not is_cat:
                new_num.append((scores @ read(block.num_value[0], num, 1))[..., 0].permute(0, 2, 1))
                continue
            total = scores.sum(-1)
            scores[..., 0] = scores[..., 0] + (1 - total / (total + 1e-10)).relu()
            logits = ((scores + 1e-20).log() + bias).masked_fill(~mask, -1e30) / d**0.5
            new_cat.append((sample(logits) @ read(block.value[0], cat, d)).permute(0, 2, 1, 3).flatten(2))
        cat, num = torch.cat([cat, *new_cat], -1), torch.cat([num, *new_num], -1)
        outputs = []
        kinds = ((spec.cat_mlps, "cat_mlp", cat, d), (spec.num_mlps, "num_mlp", num, 1))
        for mlps, stream, width in [(getattr(block, name), x, w) for count, name, x, w in kinds if count]:
            for number in range(mlps.count):
                inputs = read(mlps.read[0, number], stream, width).permute(0, 2, 1, 3).flatten(2)
                hidden = (inputs @ mlps.w_in[0, number] + mlps.b_in[0, number]).relu()
                outputs.append(sample((hidden @ mlps.w_out[0, number] + mlps.b_out[0, number]).log_softmax(-1)))
        cat = torch.cat([cat, *outputs], -1)
    logits = torch.cat([cat, num], -1) @ model.unembed[0]
    losses = cross_entropy(logits.flatten(0, 1), labels.flatten().clamp(min=0), reduction="none").view_as(labels)
    labeled = labels >= 0
    return ((losses * labeled).sum(1) / labeled.sum(1)).mean()


def measure_step(task: str, changes: dict[str, Any]) -> None:
    """One step of training of one seed, ours beside the reference's."""
    import torch

    chosen = {"num_layers": 1, "cat_heads": 2, "num_heads": 2, "cat_mlps": 1, "num_mlps": 1, **changes}
    settings = TrainSettings(task=task, seeds=1, **chosen)
    data = load_data(settings)
    model = ProgramTransformer(spec_of(settings, data), [0], Attention(settings.attention_noise))
    tokens, labels = data.train.tokens[: settings.batch_size], data.train.labels[: settings.batch_size]
    packed, temperature = PackedNetworks(model), Temperature(1.0, 1.0, "geomspace", 1, 1)
    rows = {"rows": torch.arange(len(tokens))[None]}
    exact = settings.model_copy(update={"sampling": "softmax"})
    theirs = reference_loss(model, tokens, labels, 1.0, noise=False).item()
    plain = ProgramTransformer(model.spec, [0], Attention(True))
    plain.load_state_dict(model.state_dict())
    output = ProgramStep(data.train, exact, temperature)(PackedNetworks(plain), rows)
    ours = (output.loss_sum / output.count).item()
    assert abs(ours - theirs) < 1e-5, (ours, theirs)
    step = ProgramStep(data.train, settings, temperature)

    def one() -> Any:
        found = step(packed, rows)
        return found.loss_sum / found.count

    ways = {"lmlab": one, "reference": lambda: reference_loss(model, tokens, labels, 1.0, noise=True)}
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(8):
        for name, way in ways.items():
            before = time.process_time()
            way().backward()
            best[name] = min(best[name], time.process_time() - before)
    print(
        f"{task}, a step of {len(tokens)} sequences, one seed: lmlab {1e3 * best['lmlab']:.1f} ms, built as the"
        f" reference {1e3 * best['reference']:.1f} ms of processor time, {best['reference'] / best['lmlab']:.2f} times;"
        f" the same loss ({ours:.6f}) without noise; {chosen}; load {machine_load()}"
    )


def lookups(program: Any, tokens: list[str]) -> list[str]:
    """One sequence as the reference's Python does it: lists for heads, and rows of a table in pandas for scores."""
    import pandas as pd

    table, columns = lookups.table, {"tokens": tokens, "positions": list(range(len(tokens))), "ones": [1] * len(tokens)}
    for node in program.nodes:
        if node.op == "lookup":
            keys = zip(*(columns[name] for name in node.inputs), strict=True)
            columns[node.name] = [node.table.get(key, node.default) for key in keys]
            continue
        partner = dict(node.predicate)
        values, found = columns[node.value], []
        for i, query in enumerate(columns[node.query]):
            matches = [j for j, key in enumerate(columns[node.key]) if partner.get(query) == key]
            if node.op == "select_sum":
                found.append(sum(values[j] for j in matches))
            else:
                found.append(values[min(matches, key=lambda j: (j == i, abs(i - j), j), default=0)])
        columns[node.name] = found
    parts = []
    for feature in program.classifier.features:
        if feature in program.numerical:
            rows = table.loc[[(feature, "_")] * len(tokens)].mul(columns[feature], axis=0)
        else:
            rows = table.loc[[(feature, str(value)) for value in columns[feature]]]
        parts.append(rows.reset_index())
    logits = pd.concat(parts).groupby(level=0).sum(numeric_only=True).to_numpy()
    return [program.labels[each] for each in logits.argmax(-1)]


def measure_speed(path: Path, count: int) -> None:
    """Vectorized execution beside row look-ups, on random sequences."""
    import pandas as pd

    program = load_program(path)
    random = np.random.default_rng(0)
    symbols = [token for token in program.vocabulary or () if not token.startswith("<")]
    longest = program.max_length or 8
    sequences = [[program.bos, *random.choice(symbols, random.integers(1, longest)).tolist()] for _ in range(count)]
    rows = [(name, value, *row) for name, part in program.classifier.weights.items() for value, row in part.items()]
    lookups.table = (
        pd.DataFrame(rows, columns=["feature", "value", *program.labels]).set_index(["feature", "value"]).sort_index()
    )  # type: ignore[attr-defined]
    few = sequences[: max(1, count // 20)]
    before = time.process_time()
    theirs = [lookups(program, tokens) for tokens in few]
    slow = (time.process_time() - before) / len(few)
    fast = float("inf")
    for _ in range(REPEATS):
        before = time.process_time()
        execution = Interpreter(program).run(sequences)
        fast = min(fast, (time.process_time() - before) / count)
    names = program.labels
    ours = [
        [names[each] for each in row[: len(tokens)]]
        for row, tokens in zip(execution.label_ids.tolist(), few, strict=False)
    ]
    assert ours == theirs, "the two must answer alike"
    print(
        f"{count} sequences: vectorized {1e3 * fast:.4f} ms each, row look-ups in pandas {1e3 * slow:.2f} ms each"
        f" ({len(few)} of them, same answers), {slow / fast:.0f} times; load {machine_load()}"
    )


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["speed", "train", "attention", "estimators", "table", "step", "languages", "text", "minimize", "decompile"]
    parser.add_argument("part", choices=parts)
    parser.add_argument("what", help="a task, for speed a program, for table a directory")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--only", action="append", default=[], help="of the table, this task; of the estimators, this one"
    )
    parser.add_argument(
        "--source", default="snips", help="of text, the directory with train, valid and test.jsonl (or .conll)"
    )
    parser.add_argument("--embeddings", help="of text, a model or a file of vectors that categories begin from")
    parser.add_argument("--drop", type=float, default=0.001, help="of minimize, the accuracy that may be lost")
    parser.add_argument("--seconds", type=float, help="of minimize, how long to look at each program for what can go")
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}")
    changes = {key: yaml.safe_load(value) for key, _, value in (each.partition("=") for each in given.set)}
    if given.part == "speed":
        measure_speed(Path(given.what), given.count)
        return
    if given.part == "step":
        measure_step(given.what, changes)
        return
    if given.part == "estimators":
        measure_estimators(given.what, given.seeds, given.epochs, given.only, changes)
        return
    if given.part == "minimize":
        measure_minimizing(Path(given.what), given.only, given.drop, given.seconds)
        return
    if given.part == "decompile":
        measure_decompiling(Path(given.what), given.only)
        return
    if given.part == "text":
        measure_text(Path(given.what), Path(given.source), given.embeddings, given.only, changes)
        return
    if given.part == "languages":
        measure_languages(Path(given.what), given.only, changes)
        return
    if given.part == "table":
        measure_table(Path(given.what), given.only, changes)
        return
    for noise in (True, False) if given.part == "attention" else (changes.pop("attention_noise", True),):
        measure_training(given.what, given.seeds, given.epochs, {"num_layers": 1, **changes, "attention_noise": noise})


if __name__ == "__main__":
    main()
