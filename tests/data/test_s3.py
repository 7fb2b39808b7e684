"""Sources on an S3-compatible server: moto's, over a real socket."""

from __future__ import annotations

import json

from lmlab.data import JsonlSource


def test_a_bucket_is_a_folder(s3):
    s3.mkdir("corpus")
    for part in range(3):
        with s3.open(f"corpus/books/part-{part}.jsonl", "wb") as file:
            file.write(b"".join(json.dumps({"text": f"{part}.{number}"}).encode() + b"\n" for number in range(50)))
    expected = [f"{part}.{number}" for part in range(3) for number in range(50)]
    for location in ("s3://corpus/books", "s3://corpus/books/*.jsonl", "s3://corpus/**/part-*"):
        assert [document.text for document in JsonlSource(path=location).read()] == expected
    before = JsonlSource(path="s3://corpus/books").fingerprint()
    with s3.open("corpus/books/part-1.jsonl", "wb") as file:
        file.write(b'{"text": "changed"}\n')
    s3.invalidate_cache()
    assert JsonlSource(path="s3://corpus/books").fingerprint() != before
