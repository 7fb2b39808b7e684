"""Processor seconds from starting Python to its end for one generated token, and until the second training step, lmlab
beside transformers.

    python benchmarks/starting.py models/smollm2
    python benchmarks/starting.py --training

Both on one thread, in processes of their own, taken in turn; what the first one reads from the disk is read once
before. Tokens are generated in fp32. A training step is one of a small model in bf16 (8 layers, width 256, 8 rows of
512 tokens); told are the seconds until all is imported, of making the model, and of the first and the second step.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys

_OURS = """
import lmlab
print(lmlab.load({place!r}).generate("The", max_new_tokens=1, temperature=0))
"""
_COMMAND = ["-m", "lmlab", "generate", "The", "--model", "{place}", "--max-new-tokens", "1", "--temperature", "0"]
_THEIRS = """
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained({place!r}), AutoModelForCausalLM.from_pretrained({place!r})
print(tokenizer.decode(model.generate(**tokenizer("The", return_tensors="pt"), max_new_tokens=1, do_sample=False)[0]))
"""

_STEPS = """
import json, time
import torch
{imports}
stamps = [time.process_time()]
model = {model}
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
ids = torch.randint(0, 2048, (8, 513))
stamps.append(time.process_time())
for _ in range(2):
    with torch.autocast("cpu", torch.bfloat16):
        loss = {loss}
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    stamps.append(time.process_time())
print(json.dumps([stamps[0], *(b - a for a, b in zip(stamps, stamps[1:]))]))
"""
_OUR_STEPS = {
    "imports": "from lmlab.hardware import reuse_memory\nfrom lmlab.models import ModelConfig, Transformer\n"
    "from lmlab.train import Trainer\nreuse_memory()",
    "model": "Transformer(ModelConfig(vocab_size=2048, num_layers=8, d_model=256, num_heads=4, d_ff=704,"
    " max_seq_len=512)).initialize(0)",
    "loss": "model(ids[:, :-1], labels_BT=ids[:, 1:]).loss.mean",
}
_THEIR_STEPS = {
    "imports": "from transformers import LlamaConfig, LlamaForCausalLM, Trainer",
    "model": "LlamaForCausalLM(LlamaConfig(vocab_size=2048, hidden_size=256, intermediate_size=704,"
    " num_hidden_layers=8, num_attention_heads=4, tie_word_embeddings=True))",
    "loss": "model(input_ids=ids[:, :-1], labels=ids[:, :-1]).loss",
}


def steps(parts: dict[str, str]) -> list[float]:
    """Processor seconds of what is imported, of the model, and of two steps."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-c", _STEPS.format(**parts)]
    done = subprocess.run(command, check=True, capture_output=True, env=environment, text=True)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare_steps(times: int) -> None:
    """Print the table of training."""
    ways, found = {"lmlab": _OUR_STEPS, "transformers": _THEIR_STEPS}, dict[str, list[list[float]]]()
    for number in range(times + 1):
        for name, parts in ways.items():
            taken = steps(parts)
            found.setdefault(name, []).extend([taken] if number else [])
    print("seconds of a processor  imports   model  first step  second step")
    for name, taken in found.items():
        imports, model, first, second = (statistics.median(each) for each in zip(*taken, strict=True))
        print(f"{name:22} {imports:8.2f} {model:7.2f} {first:11.2f} {second:12.2f}")


def seconds(arguments: list[str]) -> float:
    """Processor seconds of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-P", *arguments], check=True, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--training", action="store_true", help="time the first training steps")
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    if options.training:
        compare_steps(options.times)
    elif options.model is None:
        parser.error("name a model, or --training")
    else:
        compare_tokens(options)
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")


def compare_tokens(options: argparse.Namespace) -> None:
    """Print the table of a generated token."""
    ways = {
        "lmlab in Python": ["-c", _OURS.format(place=options.model)],
        "lmlab generate": [each.format(place=options.model) for each in _COMMAND],
        "transformers": ["-c", _THEIRS.format(place=options.model)],
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.times + 1):
        for name, arguments in ways.items():
            taken = seconds(arguments)
            found[name] += [taken] if number else []  # the first warms the disk's cache
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name, median in medians.items():
        print(f"{name:18} {median:5.2f} s  {median / medians['transformers']:.2f} of transformers'")


if __name__ == "__main__":
    main()
