"""Whether a file has changed is told by its content, and remembered."""

from __future__ import annotations

import hashlib
import os
import time

import pytest

from lmlab.files import content_digest, describe, digests


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "digests.sqlite"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    os.utime(path, ns=(10**18, 10**18))
    return path


def test_a_digest_is_computed_once_for_an_untouched_file(cache, file, monkeypatch):
    expected = hashlib.sha256(b"content").hexdigest()
    assert content_digest(file) == expected and cache.exists()
    monkeypatch.setattr(digests, "sha256_file", lambda path: pytest.fail("it was read again"))
    assert content_digest(file) == expected


def test_a_new_time_is_no_new_content_and_new_content_of_the_same_size_is(cache, file):
    before = describe(str(file))
    os.utime(file)
    assert describe(str(file)) == before
    file.write_bytes(b"CONTENT")
    assert describe(str(file)) != before


def test_a_file_that_was_just_written_is_not_remembered(cache, file):
    now = time.time_ns()
    os.utime(file, ns=(now, now))
    before = content_digest(file)
    file.write_bytes(b"CONTENT")
    os.utime(file, ns=(now, now))
    assert content_digest(file) != before


@pytest.mark.parametrize("damage", ["no database", "no folder"])
def test_without_a_cache_digests_are_computed(cache, file, damage):
    cache.parent.mkdir()
    if damage == "no folder":
        cache.parent.rmdir()
        cache.parent.write_text("a file")
    else:
        cache.write_text("not a database, but long enough to be looked at" * 50)
    assert content_digest(file) == hashlib.sha256(b"content").hexdigest()
    assert content_digest(file) == hashlib.sha256(b"content").hexdigest()
    if damage == "no database":
        assert content_digest(file) and cache.read_bytes().startswith(b"SQLite")


def test_files_whose_names_are_not_text_have_digests(cache, tmp_path):
    path = tmp_path / os.fsdecode(b"\xff\n")
    path.write_bytes(b"content")
    os.utime(path, ns=(10**18, 10**18))
    assert content_digest(path) == content_digest(path) == hashlib.sha256(b"content").hexdigest()
