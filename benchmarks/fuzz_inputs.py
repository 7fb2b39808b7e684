"""Malformed inputs over all commands: no traceback, no hang, exit code 2, or 0 where the damage is harmless.

    python benchmarks/fuzz_inputs.py --count 1000 --workers 2 --out fuzz.jsonl

Seeds are valid files of every kind (`fuzz_seeds.py`); a case copies them, damages one thing (`fuzz_mutations.py`) or an
argument, and runs one command in a forked process. Case n is the same on every machine that has the same seeds. A case
fails when it ends by an exception that no code foresaw, by a signal, or has used more than ten seconds of a processor.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fuzz_mutations import bad_argument, copied, damage
from fuzz_seeds import COMMANDS, make_seeds

CPU_SECONDS, WALL_SECONDS = 10, 60  # a busy machine gives a process less than a second each second
SERVE_SECONDS = 4  # a server that damage does not keep from starting is stopped then


def prepare(number: int, seeds: Path, place: Path) -> tuple[list[str], str]:
    """The copied and damaged inputs of a case below `place`, and its command."""
    rng = random.Random(number)
    target, command = COMMANDS[number % len(COMMANDS)]
    names = {
        target.partition("/")[0],
        *(word for word in command if (seeds / word.split(":")[-1]).exists() for word in [word.split(":")[-1]]),
    }
    if command[0] in ("run", "train", "launch", "demo"):
        names |= {"texts", "chats.jsonl", "preferences.jsonl", "tokenizer", "run", "model"}
    if "pipeline" in command:
        names |= {"docs.jsonl"}
    if "task.yaml" in command:
        names |= {"questions.jsonl"}
    if "--patches" in command or "--instances" in command:
        names |= {"instances.jsonl"}
    for name in sorted(name for name in names if "/" not in name):
        if not (place / name).exists():
            copied(seeds / name, place / name)
    arguments = [word.replace("OUT", "out") for word in command]
    if rng.random() < 0.12:
        return bad_argument(arguments, rng)
    told = damage(place / target, rng)
    if rng.random() < 0.2:
        told += f"; {damage(place / target, rng)}" if (place / target).exists() else ""
    return arguments, told


def child(arguments: list[str], place: Path) -> None:
    """Run one command in this process, which ends with it."""
    os.chdir(place)
    output = os.open(place / "output.txt", os.O_WRONLY | os.O_CREAT)
    source = os.open(os.devnull, os.O_RDONLY)
    for number, handle in ((0, source), (1, output), (2, output)):
        os.dup2(handle, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8") for number in (1, 2))
    if arguments[:1] == ["chat"]:
        (place / "stdin.txt").write_text("Hi\n[/bad]\n/exit\n")
        os.dup2(os.open(place / "stdin.txt", os.O_RDONLY), 0)
    sys.stdin = os.fdopen(0)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))
    if arguments[:1] == ["serve"]:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.alarm(SERVE_SECONDS)
    sys.argv = ["lmlab", *arguments]
    code: Any = 70
    try:
        from lmlab import cli

        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def judged(status: int, wall: bool, text: str) -> str:
    """How a case ended: ok, refused, or what is wrong with it."""
    if "Traceback (most recent call last)" in text:
        return "traceback"
    if wall or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)):
        return "hang"
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    code = os.WEXITSTATUS(status)
    if code == 1 and any(each in text for each in ("differ on", "Surroundings have failed", "with problems")):
        return "ok"  # what was asked has been found out, and it is bad news
    if "lmlab failed" in text:
        return "unforeseen"
    return {0: "ok", 2: "refused", 130: "ok"}.get(code, f"code {code}")


def run_cases(numbers: list[int], seeds: Path, workers: int, out: Path, wall: float = WALL_SECONDS) -> Counter[str]:
    """Run cases, so many at once; every row is written as it is known."""
    found: Counter[str] = Counter()
    running: dict[int, tuple[int, list[str], str, Path, float]] = {}
    waiting = numbers[::-1]
    with out.open("a") as file:
        while waiting or running:
            while waiting and len(running) < workers:
                number = waiting.pop()
                place = Path(tempfile.mkdtemp(prefix="fuzz-"))
                try:
                    arguments, told = prepare(number, seeds, place)
                except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
                    file.write(json.dumps({"case": number, "end": "not made", "text": repr(error)}) + "\n")
                    continue
                if (process := os.fork()) == 0:
                    child(arguments, place)
                running[process] = (number, arguments, told, place, time.monotonic())
            process, status = os.waitpid(-1, os.WNOHANG)
            late = next((each for each, case in running.items() if time.monotonic() - case[4] > wall), 0)
            if not process and late:
                os.kill(late, signal.SIGKILL)
                process, status = os.waitpid(late, 0)
            if not process:
                time.sleep(0.02)
                continue
            number, arguments, told, place, began = running.pop(process)
            text = (place / "output.txt").read_text("utf-8", "replace") if (place / "output.txt").exists() else ""
            end = judged(status, process == late, text)
            row = {"case": number, "end": end, "command": arguments, "damage": told}
            row |= {
                "seconds": round(time.monotonic() - began, 1),
                "text": text[-3000:].encode("utf-8", "replace").decode(),
            }
            file.write(json.dumps(row) + "\n")
            file.flush()
            found[end] += 1
            os.system(f"chmod -R u+rwX {place} 2>/dev/null; rm -rf {place}")
    return found


def call(*arguments: str) -> None:
    """Run a command of lmlab that must succeed."""
    from lmlab import cli

    sys.argv = ["lmlab", *arguments]
    try:
        cli.main()
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"lmlab {' '.join(arguments)} ended with {stop.code}") from None


def main() -> None:
    """Make seeds, run cases, print counts and what failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0, help="Number of the first case.")
    parser.add_argument("--case", type=int, nargs="*", help="Only these cases.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--wall", type=int, default=WALL_SECONDS, help="Seconds after which a case waits too long.")
    parser.add_argument("--seeds", type=Path, default=Path(tempfile.gettempdir(), "lmlab-fuzz-seeds"))
    parser.add_argument("--out", type=Path, default=Path("fuzz.jsonl"))
    options = parser.parse_args()
    out = options.out.resolve()
    import torch

    torch.set_num_threads(1)
    os.environ.setdefault("LMLAB_CACHE", str(options.seeds.with_name("lmlab-fuzz-cache")))
    if not (options.seeds / "plan.yaml").exists():
        make_seeds(options.seeds, call)

    import lmlab.cli
    import lmlab.models
    import lmlab.stages.evaluate
    import lmlab.stages.train  # noqa: F401 (imported once for all forks)

    numbers = options.case or list(range(options.start, options.start + options.count))
    found = run_cases(numbers, options.seeds, options.workers, out, options.wall)
    print(f"{sum(found.values())} cases: {dict(found)}; rows in {out}")
    if set(found) - {"ok", "refused"}:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
