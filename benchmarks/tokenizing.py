"""Tokenizing text to shards on the disk: lmlab beside a plain loop over the tokenizers library and datatrove, on the
same text.

python benchmarks/tokenizing.py [--megabytes 60]

The text is the standard library and, where LMLAB_SHARED points to them, the collected texts, repeated to the size.
Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

VOCAB_SIZE = 32_000


def texts(size: int) -> list[str]:
    found = [
        path.read_text("utf-8", "ignore")
        for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
        if "site-packages" not in str(path)
    ]
    shared = Path(os.environ.get("LMLAB_SHARED", "../shared"), "data", "texts")
    for path in sorted(shared.glob("*.jsonl.zst")):
        import zstandard

        with open(path, "rb") as file:
            reader = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
            found += [json.loads(line)["text"] for line in reader]
    found = [
        piece for text in found for piece in (text[start : start + 20_000] for start in range(0, len(text), 20_000))
    ]
    total, chosen = 0, []
    while total < size:
        for text in found:
            chosen.append(text)
            total += len(text.encode())
            if total >= size:
                break
    return chosen


def run(peer: str, root: Path) -> float:
    """Seconds of one contender, without its imports."""
    import numpy as np
    from tokenizers import Tokenizer as Plain

    corpus, tokenizer = root / "corpus.jsonl", root / "tokenizer"
    plain = Plain.from_file(str(tokenizer / "tokenizer.json"))
    if peer.startswith("lmlab"):
        from lmlab.data import Tokenizer, tokenize_documents

        own = Tokenizer.load(tokenizer)
        start = time.perf_counter()
        tokenize_documents(corpus, own, root / peer.replace(" ", "-"), 2**22, workers=int(peer.split()[1]))
    elif peer.startswith("tokenizers"):
        start = time.perf_counter()
        with open(corpus, encoding="utf-8") as file, open(root / "plain.bin", "wb") as out:
            documents = (json.loads(line)["text"] for line in file)
            if peer.endswith("loop"):
                for text in documents:
                    np.array([0, *plain.encode(text).ids, 0], np.uint16).tofile(out)
            else:
                batch = list(documents)
                for number in range(0, len(batch), 256):
                    for encoded in plain.encode_batch(batch[number : number + 256]):
                        np.array([0, *encoded.ids, 0], np.uint16).tofile(out)
    else:
        from datatrove.executor import LocalPipelineExecutor
        from datatrove.pipeline.readers import JsonlReader
        from datatrove.pipeline.tokens import DocumentTokenizer

        start = time.perf_counter()
        steps = [
            JsonlReader(str(root), glob_pattern="corpus.jsonl"),
            DocumentTokenizer(
                str(root / "datatrove"),
                tokenizer_name_or_path=str(tokenizer / "tokenizer.json"),
                eos_token="<|endoftext|>",
                shuffle_documents=False,
            ),
        ]
        LocalPipelineExecutor(steps, tasks=1, workers=1, logging_dir=str(root / "logs")).run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", nargs=2)
    options = parser.parse_args()
    if options.run:
        print(run(options.run[0], Path(options.run[1])))
        return
    from lmlab.data import Document, Tokenizer
    from lmlab.files import write_jsonl

    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        chosen = texts(options.megabytes * 10**6)
        size = sum(len(text.encode()) for text in chosen)
        write_jsonl(root / "corpus.jsonl", (Document(str(number), text).row() for number, text in enumerate(chosen)))
        Tokenizer.train(chosen[:: max(1, len(chosen) // 1500)], VOCAB_SIZE).save(root / "tokenizer")
        cores = len(os.sched_getaffinity(0))
        peers = ["lmlab 1 worker", f"lmlab {cores} workers", "tokenizers, loop", "tokenizers, batches", "datatrove"]
        times: dict[str, list[float]] = {}
        for number in range(options.rounds):
            for peer in peers:
                for path in root.glob("lmlab-*"):
                    subprocess.run(["rm", "-r", str(path)], check=True)
                done = subprocess.run(
                    [sys.executable, __file__, "--run", peer, str(root)], capture_output=True, text=True
                )
                if done.returncode == 0:
                    times.setdefault(peer, []).append(float(done.stdout.splitlines()[-1]))
                elif number == 0:
                    print(f"{peer}: left out ({done.stderr.strip().splitlines()[-1]})")
        print(
            f"{size / 1e6:.0f} MB of text in {len(chosen):,} documents, vocabulary of {VOCAB_SIZE:,}, {cores} cores;"
            f" median of {options.rounds}"
        )
        best = min(sorted(found)[len(found) // 2] for name, found in times.items() if name.startswith("lmlab"))
        for name, found in times.items():
            seconds = sorted(found)[len(found) // 2]
            print(f"  {name:22s} {size / seconds / 1e6:7.2f} MB/s   lmlab's best / this: {seconds / best:.2f}x")


if __name__ == "__main__":
    main()
