"""Encodings whose processes are killed for good, and on Ray: the store is that of an encoding that was left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmlab.data import Tokenizer
from lmlab.files import write_jsonl
from lmlab.methods.autocompressor import AutoCompressor, EncodeJob, encode
from lmlab.models import ModelConfig, Transformer, save_pretrained

_DOCUMENTS = 400  # so many, one a part, that a signal comes long before the end


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressor, documents, and their store."""
    place = tmp_path_factory.mktemp("kills")
    rng = np.random.default_rng(1)
    words = ["a", "store", "is", "made", "of", "parts", "that", "are", "whole", "or", "not", "there"]
    texts = [" ".join(rng.choice(words, int(rng.integers(3, 40)))) for _ in range(_DOCUMENTS)]
    tokenizer = Tokenizer.train(texts, 300)
    shape = ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=2, d_model=32, num_heads=2, max_seq_len=128)
    save_pretrained(Transformer(shape).initialize(0), place / "base")
    tokenizer.save(place / "base")
    AutoCompressor.from_base(place / "base", summary_length=3, noise=0.5).save(place / "c", companions=place / "base")
    write_jsonl(place / "docs.jsonl", ({"id": f"d{n}", "text": text} for n, text in enumerate(texts)))
    encode(_job(place, place / "whole"))
    return place


def _job(place: Path, out: Path) -> EncodeJob:
    return EncodeJob(str(place / "c"), str(place / "docs.jsonl"), str(out), segment=16, block=1, device="cpu")


def _files(store: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in store.iterdir() if each.is_file()}


def _begin(place: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    """The command, in a process group of its own, once it has written some parts."""
    settings = ("--segment", "16", "--block", "1", "--device", "cpu", "--workers", str(workers))
    command = ("compress", "encode", str(place / "c"), "--in", str(place / "docs.jsonl"), "--out", str(out), *settings)
    process = subprocess.Popen(
        [sys.executable, "-m", "lmlab", *command],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    limit = time.monotonic() + 120
    while len(list(out.glob("part-*.json"))) < 3:
        assert process.poll() is None and time.monotonic() < limit, process.stderr and process.stderr.read()
        time.sleep(0.005)
    return process


@pytest.mark.parametrize(("workers", "later"), [(1, 2), (2, 1)])
def test_kill_9_in_the_middle_and_the_same_command_again_give_the_same_bytes(
    place: Path, tmp_path: Path, workers: int, later: int
) -> None:
    process = _begin(place, tmp_path / "s", workers)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    written = len(list((tmp_path / "s").glob("part-*.json")))
    assert 3 <= written < _DOCUMENTS
    found = encode(_job(place, tmp_path / "s"), workers=later)
    assert found["encoded"] == _DOCUMENTS - written
    assert _files(tmp_path / "s") == _files(place / "whole")


def test_the_death_of_one_worker_is_said_and_loses_nothing(place: Path, tmp_path: Path) -> None:
    process = _begin(place, tmp_path / "s", 2)
    command = ("ps", "-ww", "-o", "pid=,args=", "--ppid", str(process.pid))
    told = subprocess.run(command, capture_output=True, text=True).stdout
    workers = [int(line.split()[0]) for line in told.splitlines() if "multiprocessing.spawn" in line]
    assert len(workers) == 2, told
    os.kill(workers[0], signal.SIGKILL)
    assert process.wait(60) == 1 and process.stderr is not None
    assert b"Traceback" not in (said := process.stderr.read()) and said.count(b"\n") <= 3
    encode(_job(place, tmp_path / "s"))
    assert _files(tmp_path / "s") == _files(place / "whole")


def test_processes_on_ray_write_the_same_store(place: Path, tmp_path: Path, lmlab: Callable[..., Any]) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    found = encode(_job(place, tmp_path / "s"), workers=2, backend="ray")
    assert found["encoded"] == _DOCUMENTS and _files(tmp_path / "s") == _files(place / "whole")
