"""Sources on an S3-compatible server: moto's, over a real socket."""

from __future__ import annotations

import json
import socket

import pytest

from lmlab.data import JsonlSource

pytest.importorskip("s3fs")
server_module = pytest.importorskip("moto.server")


@pytest.fixture
def bucket(monkeypatch):
    import s3fs

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=port)
    server.start()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("corpus")
    yield system
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_a_bucket_is_a_folder(bucket):
    for part in range(3):
        with bucket.open(f"corpus/books/part-{part}.jsonl", "wb") as file:
            file.write(b"".join(json.dumps({"text": f"{part}.{number}"}).encode() + b"\n" for number in range(50)))
    expected = [f"{part}.{number}" for part in range(3) for number in range(50)]
    for location in ("s3://corpus/books", "s3://corpus/books/*.jsonl", "s3://corpus/**/part-*"):
        assert [document.text for document in JsonlSource(path=location).read()] == expected
    before = JsonlSource(path="s3://corpus/books").fingerprint()
    with bucket.open("corpus/books/part-1.jsonl", "wb") as file:
        file.write(b'{"text": "changed"}\n')
    bucket.invalidate_cache()
    assert JsonlSource(path="s3://corpus/books").fingerprint() != before
