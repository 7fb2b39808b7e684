"""What lmlab does on a GPU: whether it is right there, and how fast, beside `transformers` in the same run.

    python benchmarks/gpu.py --part NAME --out DIR [--minutes M] [--device cpu --tiny] [--only WORD ...]

NAME is one of the parts below, several of them, or `all`, which gives each a share of the minutes by its worth; what
one does not use goes to the next. Every part is a process of its own. It looks at the clock before every measurement,
writes DIR/NAME.json after each, so that a kill loses nothing, and is ended when its time is over. DIR/tables.md holds
what was printed.

    exact     attention and experts by every back end, losses, whole models and caches, against the CPU in fp64
    train     training steps at 135M, 1B and 3B, 2K and 8K tokens, compiled or not: tokens/s and utilization
    moe       grouped products and a sparse model, beside dense ones of equal active size
    decode    tokens/s of greedy decoding at batches of 1, 16 and 64
    serve     the batched engine with 1, 8 and 32 clients
    long      packed documents of 32K to 128K tokens with recomputation: tokens/s and memory
    extend    SmolLM2 from 8K to 32K tokens in three variants: recall by length, with intervals (8 minutes)
    resume    a training that moves from the CPU to the GPU and back
    circuits  a step of edge pruning on SmolLM2's shape, up to its full length
    poison    candidates a second against one's own retriever; the grid of passages, objectives and optimizers
    tutor     questions about chapters of 8K tokens; tuning on dialogues in rows of 8K tokens (8 minutes)
    programs  the paper's grid of Transformer Programs, and larger problems: accuracy and seconds

`--device cpu --tiny` runs all of it in a minute on small shapes, to see that it works; its figures mean nothing. All
weights are random: speed does not depend on them. The package need not be installed: PYTHONPATH=src is enough, and what
is missing is said in the first line, with what is left out for it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

WORTH = {  # shares of the minutes, in the order in which parts run: correctness, then what most users do
    "exact": 2.0,
    "train": 4.0,
    "decode": 1.5,
    "moe": 1.5,
    "long": 1.0,
    "extend": 2.0,
    "resume": 0.5,
    "serve": 1.0,
    "circuits": 0.7,
    "poison": 1.0,
    "tutor": 1.5,
    "programs": 2.0,
}
_CLOSING = 6.0  # seconds before its end at which a part should have printed its tables
_GRACE = 20.0  # seconds beyond its share after which a part is killed: a compilation cannot be asked to stop


def main() -> None:
    """Run the parts one after the other, and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", required=True, choices=[*WORTH, "all"])
    parser.add_argument("--out", type=Path, required=True, help="receives NAME.json and tables.md")
    parser.add_argument("--minutes", type=float, help="for all parts together (6 for each part; 12 for `all`)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to see that it works")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="measure only what has one of these in its name")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        from gpu_parts.session import work

        work(arguments.part[0], arguments)
        return
    names = list(WORTH) if "all" in arguments.part else arguments.part
    default = 12.0 if "all" in arguments.part else 6.0 * len(names)
    minutes = default if arguments.minutes is None else arguments.minutes
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "tables.md").unlink(missing_ok=True)
    raise SystemExit(_run(names, 60 * minutes, arguments))


def _run(names: list[str], seconds: float, arguments: argparse.Namespace) -> int:
    """Give each part its share of what is left; 1 if any failed or was wrong."""
    end, failed = time.monotonic() + seconds, 0
    for number, name in enumerate(names):
        left = end - time.monotonic()
        share = left * WORTH[name] / sum(WORTH[each] for each in names[number:])
        if share < 5:
            print(f"\n{name}: no time is left for it", flush=True)
            continue
        failed |= _run_part(name, share, left, arguments)
    return failed


def _run_part(name: str, share: float, left: float, arguments: argparse.Namespace) -> int:
    command = [sys.executable, __file__, "--worker", "--part", name, "--out", str(arguments.out)]
    command += ["--minutes", str(max(share - _CLOSING, 0.8 * share) / 60), "--device", arguments.device]
    command += ["--tiny"] * arguments.tiny + (["--only", *arguments.only] if arguments.only else [])
    # freed blocks of changing sizes are joined rather than kept apart: packed rows differ from step to step
    environment = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "TOKENIZERS_PARALLELISM": "false", **os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).resolve().parent.parent / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    process = subprocess.Popen(command, env=environment)
    try:
        return int(process.wait(min(share + _GRACE, max(left, 10.0))) != 0)
    except subprocess.TimeoutExpired:
        print(f"{name}: its time was over; what it had measured is in {name}.json", flush=True)
        process.kill()
        process.wait()
        return 0
    except BaseException:
        process.kill()
        raise


if __name__ == "__main__":
    main()
