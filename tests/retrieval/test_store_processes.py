"""One store of vectors and several processes: killed at any moment, or building at once."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from lmlab.errors import UserError
from lmlab.retrieval import EmbeddingStore

FORK = multiprocessing.get_context("fork")
TEXTS = [f"passage {number} of the store" for number in range(60)]
OTHERS = [f"passage {number} of another collection" for number in range(60)]
IDS = [f"d{number}" for number in range(60)]


class Slow:
    """An encoder whose vectors are digests of texts, and that takes its time."""

    dim = 8

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.fingerprint = seconds, {"model": "digests"}

    def encode_text(self, texts, kind="document", precision="fp32"):
        time.sleep(self.seconds)
        rows = [np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)[: self.dim] for text in texts]
        return np.array(rows, np.float32)


def build(place: Path, texts: list[str] = TEXTS, seconds: float = 0.0) -> EmbeddingStore:
    return EmbeddingStore.build(place, Slow(seconds), IDS, texts, shard_rows=4)  # type: ignore[arg-type]


def contents(place: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in place.iterdir() if each.name != ".lock"}


def started(place: Path, texts: list[str] = TEXTS, seconds: float = 0.02):
    process = FORK.Process(target=build, args=(place, texts, seconds))
    process.start()
    return process


@pytest.mark.parametrize("shards", [0, 1, 7, 14])
def test_a_store_whose_builder_was_killed_is_byte_equal_once_it_went_on(shards, tmp_path):
    build(tmp_path / "whole")
    place = tmp_path / "killed"
    process = started(place)
    while len(list(place.glob("*.npy"))) < shards and process.is_alive():
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    if (place / "meta.json").exists():
        assert len(list(place.glob("*.npy"))) < 15
        with pytest.raises(UserError, match="is not complete"):
            EmbeddingStore.open(place).require(Slow(), "document")  # type: ignore[arg-type]
    build(place)  # the lock died with its holder
    assert contents(place) == contents(tmp_path / "whole")


def test_what_a_killed_builder_was_writing_does_not_stay(tmp_path, monkeypatch):
    from lmlab.retrieval import store

    place = tmp_path / "store"
    write = store._write

    def killed(location: str, data: bytes) -> None:
        if not location.endswith(".npy"):
            return write(location, data)
        with store.atomic_file(Path(location)) as file:
            file.write(data[:20])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(store, "_write", killed)
    process = started(place)
    process.join()
    monkeypatch.undo()
    assert process.exitcode == -signal.SIGKILL and not list(place.glob("[0-9]*.npy"))
    build(place)
    build(tmp_path / "whole")
    assert contents(place) == contents(tmp_path / "whole")


def test_processes_that_build_at_once_leave_one_whole_store(tmp_path):
    processes = [started(tmp_path, texts, 0.004) for texts in (TEXTS, OTHERS, TEXTS, OTHERS)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = EmbeddingStore.open(tmp_path).vectors()
    whole = [Slow().encode_text(texts) for texts in (TEXTS, OTHERS)]
    assert any(np.array_equal(found, each) for each in whole)  # rows of both nowhere stand together
    assert len(list(tmp_path.glob("*.npy"))) == 15


def test_of_processes_that_build_the_same_one_encodes(tmp_path):
    build(tmp_path)
    before = contents(tmp_path)
    stamps = {each: each.stat().st_mtime_ns for each in tmp_path.glob("*.npy")}
    processes = [started(tmp_path) for _ in range(3)]
    for process in processes:
        process.join()
    assert contents(tmp_path) == before
    assert stamps == {each: each.stat().st_mtime_ns for each in tmp_path.glob("*.npy")}
