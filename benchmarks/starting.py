"""Processor seconds from starting Python to its end for one generated token, lmlab beside transformers.

    python benchmarks/starting.py models/smollm2

Both in fp32 on one thread, in processes of their own, taken in turn; what the first one reads from the disk is read
once before.
"""

from __future__ import annotations

import argparse
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
    parser.add_argument("model")
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
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
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
