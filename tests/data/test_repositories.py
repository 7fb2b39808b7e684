"""Repositories become documents, whatever order their files have."""

from __future__ import annotations

import pytest

from lmlab.data import find_source
from lmlab.errors import UserError


def _make(root):
    for name, files in {"alpha": ["a.py", "b/c.py", "notes.md", "image.bin"], "beta": ["only.py"]}.items():
        for file in files:
            path = root / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"text of {name}/{file}\n")
    for folder in (".git", "tests"):
        (root / "alpha" / folder).mkdir()
    (root / "alpha" / "tests" / "y.py").write_text("hidden")
    (root / "alpha" / ".git" / "x.py").write_text("hidden")
    (root / "alpha" / "bad.txt").write_bytes(b"\xff\xfe\xff")


def test_all_files_of_a_repository_are_one_document(tmp_path):
    _make(tmp_path)
    source = find_source("repositories")
    found = list(source(path=str(tmp_path)).read())
    documents = [each for each in found if hasattr(each, "text")]
    assert [each.id for each in documents] == ["alpha"]  # beta has one file alone
    assert [each.reason for each in found if hasattr(each, "reason")] == ["not UTF-8: 1 file of 'alpha'"]
    text = documents[0].text
    assert all(f"# alpha/{name}\ntext of alpha/{name}\n" in text for name in ("a.py", "b/c.py", "notes.md"))
    assert "hidden" not in text and "image" not in text
    orders = {
        next(each.text for each in source(path=str(tmp_path), seed=seed).read() if hasattr(each, "text"))
        for seed in range(8)
    }
    assert len(orders) > 1
    assert next(source(path=str(tmp_path)).read()).text == text if not hasattr(found[0], "reason") else True
    before = source(path=str(tmp_path)).fingerprint()
    (tmp_path / "alpha" / "a.py").write_text("changed")
    assert source(path=str(tmp_path)).fingerprint() != before
    with pytest.raises(UserError, match="There is no folder"):
        list(source(path=str(tmp_path / "none")).read())
