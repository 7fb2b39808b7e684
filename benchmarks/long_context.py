"""Speed and memory of a training step on long rows on a CPU, beside transformers, by each way of attention.

    python benchmarks/long_context.py [--lengths 512 2048 8192 16384] [--precisions fp32 bf16] [--threads 2]
    [--documents 1] [--rounds N] [--contenders NAME ...] [--cold]
    python benchmarks/long_context.py --prompts 16384 [--piece 2048]

A model of 4 layers, width 256, 4 heads, 2,048 tokens; a row a step; forward, backward and AdamW. Each contender is a
process of its own that trains the same weights on the same row; they take turns, a step each. Medians are printed with
the machine's load before the first and after the last step. `lmlab, blocks` and `lmlab, mixed` are lmlab told to
compute attention so (`lmlab.hardware.ways`); `lmlab` takes what is in force. With `--documents` more than 1 the row
holds so many texts, which transformers, given their positions, is told by its mask.

With `--cold` the first step counts, for lengths at which a step takes minutes.

With `--prompts` the same model reads a prompt of so many tokens and writes 16 more, in one pass and in pieces, which is
how `lmlab serve` reads long prompts and what transformers calls `prefill_chunk_size`; a "step" is all of that.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

SHAPE = {"vocab_size": 2048, "num_layers": 4, "d_model": 256, "num_heads": 4, "d_ff": 704}
NEW_TOKENS = 16
WRITERS = ("lmlab", "transformers", "lmlab, pieces", "transformers, pieces")
CONTENDERS = ("lmlab", "transformers", "lmlab, fused", "lmlab, mixed", "lmlab, blocks")


def main() -> None:
    """Start a process for each contender of each case, and print what they measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 2048, 8192, 16384])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--documents", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contenders", nargs="+", default=["lmlab", "transformers"], choices=CONTENDERS)
    parser.add_argument("--prompts", nargs="+", type=int, default=[], help="write behind prompts of so many tokens")
    parser.add_argument("--piece", type=int, default=2048, help="tokens of a piece of a prompt")
    parser.add_argument("--cold", action="store_true", help="take no step before those that are measured")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        work(json.loads(arguments.worker))
        return
    for precision in arguments.precisions:
        print(f"\n{precision}, {arguments.threads} threads, {arguments.documents} documents a row")
        print("| tokens | contender | s/step | lmlab is | MiB | lmlab needs | load |\n|---|---|---|---|---|---|---|")
        shared = {"precision": precision, "threads": arguments.threads, "documents": arguments.documents}
        for length in arguments.prompts:
            case = {**shared, "length": length, "piece": arguments.piece}
            _measure(case, list(WRITERS), arguments.rounds, arguments.cold)
        for length in () if arguments.prompts else arguments.lengths:
            _measure({**shared, "length": length}, arguments.contenders, arguments.rounds, arguments.cold)


def _measure(case: dict[str, Any], contenders: list[str], rounds: int, cold: bool) -> None:
    workers = {name: _Worker({**case, "contender": name}) for name in contenders}
    first = {} if cold else {name: worker.ask("warm up")["loss"] for name, worker in workers.items()}
    load, steps = os.getloadavg()[0], {name: list[float]() for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            answer = worker.ask("step")
            steps[name].append(answer["seconds"])
            first.setdefault(name, answer["loss"])
    memory = {name: worker.ask("end")["memory"] for name, worker in workers.items()}
    median = {name: statistics.median(each) for name, each in steps.items()}
    base = contenders[0]
    spread = max(abs(loss - first[base]) for loss in first.values())
    for name in contenders:
        cells = [f"{case['length']:,}", name, f"{median[name]:.3f}", f"{median[name] / median[base]:.2f}x faster"]
        cells += [f"{memory[name] / 2**20:,.0f}", f"{memory[base] / memory[name]:.0%}"]
        print("| " + " | ".join([*cells, f"{load:.1f} to {os.getloadavg()[0]:.1f}"]) + " |", flush=True)
    if spread > 0.02:
        print(f"first losses differ by {spread:.3f}")


class _Worker:
    """A contender in a process of its own, which does nothing until it is asked."""

    def __init__(self, case: dict[str, Any]) -> None:
        command = [sys.executable, __file__, "--worker", json.dumps(case)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, what: str) -> dict[str, Any]:
        """Send a word, return the answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(what, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise SystemExit(f"a contender ended with status {self._process.wait()}")


def work(case: dict[str, Any]) -> None:
    """Make the model, then take a step each time that a line comes."""
    import torch

    from lmlab.hardware import peak_memory_bytes, reuse_memory, ways

    torch.set_num_threads(case["threads"])
    reuse_memory()  # for all of them, so that none is the slower by its allocator
    length, documents = case["length"], case["documents"]
    ids = torch.randint(0, SHAPE["vocab_size"], (1, length), generator=torch.Generator().manual_seed(0))
    size = -(-length // documents)
    document_ids, positions = (torch.arange(length) // size)[None], (torch.arange(length) % size)[None]
    labels = torch.cat((ids[:, 1:], torch.full_like(ids[:, :1], -100)), 1)
    labels[:, size - 1 :: size] = -100
    name, _, way = case["contender"].partition(", ")
    make = _lmlab if name == "lmlab" else _transformers
    before = peak_memory_bytes(torch.device("cpu")) or 0
    model, loss_of = make(ids, labels, None if documents == 1 else document_ids, positions)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def train() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=case["precision"] == "bf16"):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    step = train
    if "piece" in case:
        step = _writing(model, name, ids, case["precision"], case["piece"] if way else 0)
    told = {question: way for question in ways.QUESTIONS if way and question.startswith("attention")}
    with ways.using(told):
        for line in sys.stdin:
            answer: dict[str, Any]
            if line.strip() == "warm up":
                answer = {"loss": step()}
                step()
            elif line.strip() == "step":
                start = time.perf_counter()
                loss = step()
                answer = {"seconds": time.perf_counter() - start, "loss": loss}
            else:
                answer = {"memory": (peak_memory_bytes(torch.device("cpu")) or 0) - before}
            print("answer " + json.dumps(answer), flush=True)
            if "memory" in answer:
                return


def _writing(model: Any, name: str, ids: Any, precision: str, piece: int) -> Any:
    """Read the prompt, in pieces if they have a size, and write; the last token is told, to be compared."""
    import torch

    from lmlab.models import Decoding, DecodingConfig, KVCache, lay_out

    model = model.eval().to(torch.bfloat16 if precision == "bf16" else torch.float32)
    prompt, room = ids[0].tolist(), ids.shape[1] + NEW_TOKENS
    if name == "transformers":
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "use_cache": True}
        options |= {"prefill_chunk_size": piece} if piece else {}

        def write() -> float:
            with torch.inference_mode():
                return float(model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, -1])

        return write
    lay_out(model)
    config = DecodingConfig(max_new_tokens=NEW_TOKENS, temperature=0)

    def write_ours() -> float:
        decoding, cache = Decoding(model), None
        if piece:
            cache = KVCache(model.config, 1, room, model.embedding.weight.dtype)
            for start in range(0, len(prompt) - 1, piece):
                decoding.read(prompt[start : min(start + piece, len(prompt) - 1)], cache)
        ((row,),) = decoding.add([(prompt, config)], cache)
        while decoding.live:
            decoding.step()
        return float(row.ids[-1])

    return write_ours


def _lmlab(ids: Any, labels: Any, document_ids: Any, positions: Any) -> Any:
    from lmlab.models import ModelConfig, Transformer

    model = Transformer(ModelConfig(**SHAPE, max_seq_len=ids.shape[1] + NEW_TOKENS)).initialize(0)
    return model, lambda: model(ids, document_ids_BT=document_ids, labels_BT=labels).loss.mean


def _transformers(ids: Any, labels: Any, document_ids: Any, positions: Any) -> Any:
    import tempfile
    from pathlib import Path

    from transformers import LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from lmlab.models import ModelConfig, Transformer, save_pretrained

    disable_progress_bar()
    with tempfile.TemporaryDirectory() as directory:
        config = ModelConfig(**SHAPE, max_seq_len=ids.shape[1] + NEW_TOKENS)
        save_pretrained(Transformer(config).initialize(0), Path(directory))
        model = LlamaForCausalLM.from_pretrained(directory, attn_implementation="sdpa", use_cache=False).train()
    mask = None
    if document_ids is not None:
        causal = ids.new_ones(ids.shape[1], ids.shape[1]).bool().tril()
        mask = ((document_ids[:, :, None] == document_ids[:, None]) & causal)[:, None]
    shifted = {"labels": ids, "shift_labels": labels}
    return model, lambda: model(input_ids=ids, attention_mask=mask, position_ids=positions, **shifted).loss


if __name__ == "__main__":
    main()
