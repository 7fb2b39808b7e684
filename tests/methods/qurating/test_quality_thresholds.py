"""What thresholds keep and drop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmlab.methods.qurating.analysis.thresholds import what_thresholds_keep


def test_shares_thresholds_and_edges_are_those_of_a_plain_count() -> None:
    rng = np.random.default_rng(0)
    count = 2000
    ratings, lengths = rng.standard_normal(count), rng.integers(10, 500, count).astype(float)
    ratings[::50] = np.nan
    domains = [("a", "b", "c")[n % 3] for n in range(count)]
    texts = [f"text {n}" for n in range(count)]
    found = what_thresholds_keep(ratings, lengths, domains, range(count), texts, 3)
    finite = np.isfinite(ratings)
    assert [round(row["kept"], 1) for row in found] == [0.9, 0.7, 0.5, 0.3, 0.1]
    for row in found:
        kept = finite & (ratings >= row["threshold"])
        assert row["rows"] == kept.sum() and row["kept"] == pytest.approx(lengths[kept].sum() / lengths[finite].sum())
        for label, share in row["domains"].items():
            mine = np.array(domains) == label
            assert share == pytest.approx(lengths[kept & mine].sum() / lengths[finite & mine].sum())
        assert min(each["rating"] for each in row["above"]) == row["threshold"]
        below = [each["rating"] for each in row["below"]]
        assert below == sorted(ratings[finite & ~kept], reverse=True)[:3]
        assert all(each["text"] == f"text {each['id']}" for each in row["above"] + row["below"])


def test_a_rating_by_length_shows_in_the_lengths() -> None:
    lengths = np.arange(1.0, 301)
    (row,) = what_thresholds_keep(lengths, lengths, ["x"] * 300, range(300), [], shares=(0.5,))
    assert row["lengths"]["short"] == 0 < row["lengths"]["long"] and row["above"] == []
    equal = what_thresholds_keep(np.ones(5), np.ones(5), ["x"] * 5, range(5), ["t"] * 5)
    assert all(row["kept"] == 1 and row["below"] == [] for row in equal)
    assert what_thresholds_keep(np.full(3, np.nan), np.ones(3), ["x"] * 3, range(3), []) == []


def test_the_page_of_a_choice_says_what_thresholds_keep(tmp_path: Path, lmlab: Any) -> None:
    rng = np.random.default_rng(0)
    count = 300
    table = {
        "id": [f"d{n}" for n in range(count)],
        "text": [f"<b>text</b> number {n} " * 5 for n in range(count)],
        "length": rng.integers(10, 100, count),
        "domain": [("news", "code")[n % 2] for n in range(count)],
        "q_average": rng.standard_normal(count) + np.arange(count) % 2,
    }
    pq.write_table(pa.table(table), tmp_path / "rated.parquet")
    source = ["--in", tmp_path / "rated.parquet"]
    chosen = ["--metric", "q_average", "--mode", "sample", "--tokens", "30%", "--domain", "domain"]
    assert lmlab("quality", "select", *source, *chosen, "--out", tmp_path / "chosen").code == 0
    page = tmp_path / "page.html"
    done = lmlab("quality", "report", *source, "--selection", tmp_path / "chosen", "--clusters", "0", "--out", page)
    assert done.code == 0, done.err
    html = page.read_text()
    assert "What each threshold keeps" in html and "<b>text</b> number" not in html and "&lt;b&gt;text" in html
