"""What other processes on the machine cost a training step and a written token, beside `transformers` and litgpt.

    python benchmarks/busy.py [--others 0 1 2] [--seconds 6] [--model DIR]

For each number of busy processes (a loop of Python each, of this program's own priority) the contenders run in turn,
each as a process of its own that begins beside them: lmlab with a fixed number of threads, lmlab with threads that
follow the machine (`LMLAB_THREADS=adaptive`), lmlab on one thread, `transformers`, and for training litgpt where it is
installed. Work is a training step of a small model in bf16 (8 layers, width 256, 4 rows of 512 tokens) or, with
--model, a text of which 32 tokens are read and 8 written in bf16.

The fair share is what equal turns would leave: with c cores, t threads and n others a thread gets c / (t + n) of a
core, so alone / share is what sharing explains. Printed are medians, that quotient and the load of the machine. Other
programs disturb the figures: they mean little where the load is far above what was started here.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CONTENDERS: dict[str, dict[str, str]] = {
    "lmlab, fixed": {"LMLAB_THREADS": "fixed"},
    "lmlab, adaptive": {"LMLAB_THREADS": "adaptive"},
    "lmlab, one thread": {"LMLAB_THREADS": "1"},
    "transformers": {},
    "litgpt": {},
}
_PEERS = ("transformers", "litgpt")
_SHAPE = {"vocab_size": 2048, "num_layers": 8, "d_model": 256, "num_heads": 4, "d_ff": 688, "max_seq_len": 512}


def main() -> None:
    """Measure every combination and print one table a kind of work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=6.0, help="for which each contender works")
    parser.add_argument("--model", type=Path, help="a Hugging Face directory, for decoding")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(_work(options.contender, options.model, options.seconds)))
        return
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores\n\n| others | contender | ms | of alone | of what sharing explains | load |\n|" + "---|" * 6)
    alone: dict[str, float] = {}
    for others in options.others:
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
        try:
            for name, environment in _CONTENDERS.items():
                if name == "litgpt" and (options.model or not importlib.util.find_spec("litgpt")):
                    continue
                found = _run(name, environment, options)
                if not others:
                    alone[name] = found
                threads = 1 if name.endswith("one thread") else cores
                share = min(1.0, cores / (threads + others))
                ratio = found / alone[name] if name in alone else float("nan")
                load = os.getloadavg()[0]
                print(
                    f"| {others} | {name} | {found:.0f} | {ratio:.2f} | {ratio * share:.2f} | {load:.1f} |", flush=True
                )
        finally:
            for each in busy:
                each.kill()
                each.wait()


def _run(name: str, environment: dict[str, str], options: argparse.Namespace) -> float:
    """Milliseconds of a step, the median of the second half of the time."""
    arguments = [sys.executable, __file__, "--contender", name, "--seconds", str(options.seconds)]
    arguments += ["--model", str(options.model)] if options.model else []
    clean = {key: value for key, value in os.environ.items() if key != "LMLAB_THREADS"}
    done = subprocess.run(arguments, env=clean | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds = json.loads(done.stdout.strip().splitlines()[-1])
    return 1e3 * statistics.median(seconds[len(seconds) // 2 :])


def _work(name: str, model: Path | None, seconds: float) -> list[float]:
    """Seconds of each step, for so long."""
    from lmlab.hardware.threads import beat, settle

    if name not in _PEERS:
        settle()
    step = (_decoding if model else _training)(name, model)
    found, end = [], time.perf_counter() + seconds
    while not found or time.perf_counter() < end:
        if name not in _PEERS:
            beat()
        start = time.perf_counter()
        step()
        found.append(time.perf_counter() - start)
    return found


def _training(name: str, _: Path | None) -> Callable[[], None]:
    import torch

    from lmlab.hardware import reuse_memory

    reuse_memory()
    torch.manual_seed(0)
    ids = torch.randint(0, _SHAPE["vocab_size"], (4, 513))
    network: Any
    if name in _PEERS:
        from transformers import LlamaConfig, LlamaForCausalLM

        llama = LlamaConfig(
            vocab_size=_SHAPE["vocab_size"],
            hidden_size=_SHAPE["d_model"],
            intermediate_size=_SHAPE["d_ff"],
            num_hidden_layers=_SHAPE["num_layers"],
            num_attention_heads=_SHAPE["num_heads"],
            max_position_embeddings=_SHAPE["max_seq_len"],
            tie_word_embeddings=True,
        )
    if name == "transformers":
        network = LlamaForCausalLM(llama)
    elif name == "litgpt":
        from litgpt.model import GPT
        from training import litgpt_config

        network = GPT(litgpt_config(llama.to_dict(), _SHAPE["max_seq_len"]))
        network.lm_head.weight = network.transformer.wte.weight  # tied, as the others' are
    else:
        from lmlab.models import ModelConfig, Transformer

        network = Transformer(ModelConfig(**_SHAPE)).initialize(0)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            if name == "transformers":
                loss = network(input_ids=ids[:, :-1], labels=ids[:, :-1]).loss
            elif name == "litgpt":
                from litgpt.utils import chunked_cross_entropy

                loss = chunked_cross_entropy(network(ids[:, :-1]), ids[:, 1:])
            else:
                loss = network(ids[:, :-1], labels_BT=ids[:, 1:]).loss.mean
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _decoding(name: str, directory: Path | None) -> Callable[[], None]:
    import torch

    assert directory is not None
    prompt, new = list(range(100, 132)), 8
    if name == "transformers":
        from transformers import AutoModelForCausalLM

        theirs: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        return lambda: theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)
    from lmlab.models import GenerationConfig, generate
    from lmlab.runs import Model

    ours, config = Model.find(directory).load_in("bf16", "cpu"), GenerationConfig(max_new_tokens=new, temperature=0)

    def step() -> None:
        generate(ours, [prompt], config)

    return step


if __name__ == "__main__":
    main()
