"""Memory and speed of collecting and tokenizing a corpus of any size, and of one a tenth as large.

python benchmarks/memory.py [--size 5e9] [--no-near-duplicates] [--directory DIR]

The corpus is JSON lines of random sentences over the words of the standard library; every hundredth document repeats an
earlier one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path


def generate(path: Path, size: int) -> int:
    """Write documents of together `size` bytes of text; return their number."""
    import re

    import numpy as np

    text = "".join(
        file.read_text("utf-8", "ignore") for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    )
    words = np.array(sorted(set(re.findall(r"[A-Za-z_]{2,12}", text))))
    draw, written, number = np.random.default_rng(0), 0, 0
    kept: list[str] = []
    with open(path, "w", encoding="utf-8") as file:
        while written < size:
            if number % 100 == 99:
                body = kept[int(draw.integers(len(kept)))]
            else:
                body = " ".join(words[draw.integers(0, len(words), int(draw.integers(100, 1200)))])
                kept = [*kept[-99:], body]
            file.write(json.dumps({"text": body, "source": f"s{number % 5}"}) + "\n")
            written, number = written + len(body), number + 1
    return number


def resident(pid: int) -> int:
    """Resident memory of a process and its children in bytes, without pages of files."""
    total = 0
    for each in [pid, *children(pid)]:
        try:
            for line in Path(f"/proc/{each}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    total += int(line.split()[1]) * 1024
        except OSError:
            continue
    return total


def children(pid: int) -> list[int]:
    try:
        found = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return found + [grandchild for child in found for grandchild in children(child)]


def measure(step: str, corpus: Path, work: Path, near: bool) -> tuple[float, int]:
    """Seconds and peak memory of one step in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--step", step, str(corpus), str(work), *([] if near else ["--no-near-duplicates"])]
    )
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.05)

    start = time.perf_counter()
    watcher = threading.Thread(target=watch)
    watcher.start()
    if process.wait():
        raise SystemExit(f"{step} failed")
    watcher.join()
    return time.perf_counter() - start, peak


def run_step(step: str, corpus: Path, work: Path, near: bool) -> None:
    from lmlab.data import CollectConfig, JsonlSource, Tokenizer, collect, tokenize_documents

    if step == "collect":
        settings = {} if near else {"near_duplicate_threshold": None}
        collect([JsonlSource(path=str(corpus), domain_field="source")], CollectConfig(**settings), 0, work)
    elif step == "train_tokenizer":
        with open(work / "train.jsonl", encoding="utf-8") as file:
            Tokenizer.train((json.loads(line)["text"] for line, _ in zip(file, range(2000), strict=False)), 8192).save(
                work / "tokenizer"
            )
    else:
        tokenize_documents(work / "train.jsonl", Tokenizer.load(work / "tokenizer"), work / "tokens", 2**24)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=5e9)
    parser.add_argument("--no-near-duplicates", action="store_true")
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--step", nargs=3, metavar=("NAME", "CORPUS", "WORK"))
    options = parser.parse_args()
    near = not options.no_near_duplicates
    if options.step:
        name, corpus, work = options.step
        run_step(name, Path(corpus), Path(work), near)
        return
    for size in (options.size / 10, options.size):
        with tempfile.TemporaryDirectory(dir=options.directory) as directory:
            corpus = Path(directory, "corpus.jsonl")
            number = generate(corpus, int(size))
            print(
                f"{size / 1e9:.2f} GB, {number:,} documents, near-duplicates {'found' if near else 'not looked for'}",
                flush=True,
            )
            for step in ("collect", "train_tokenizer", "tokenize"):
                seconds, peak = measure(step, corpus, Path(directory), near)
                if step != "train_tokenizer":
                    print(
                        f"  {step:9s} {seconds:8.1f} s  {size / seconds / 1e6:6.1f} MB/s  peak memory"
                        f" {peak / 2**20:7.0f} MiB",
                        flush=True,
                    )
            report = json.loads(Path(directory, "collect.json").read_text())
            dropped = {name: sum(counts["documents"].values()) for name, counts in report["dropped"].items()}
            print(f"  dropped: {dropped}", flush=True)


if __name__ == "__main__":
    main()
