"""What thresholds keep and drop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmlab.endpoints import ChatRequest, Choice, Endpoint, MockBackend, Price, Reply, Usage, answer
from lmlab.files import write_json
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


def test_the_page_of_a_choice_says_what_it_cost_and_brought(tmp_path: Path, lmlab: Any) -> None:
    count = 40
    table = {"id": list(range(count)), "text": ["some words here"] * count, "length": [25] * count}
    pq.write_table(pa.table(table | {"q_average": np.arange(count) / 7.0}), tmp_path / "rated.parquet")
    source = ["--in", tmp_path / "rated.parquet"]
    chosen = ["--metric", "q_average", "--mode", "top_k", "--tokens", "500"]
    assert lmlab("quality", "select", *source, *chosen, "--out", tmp_path / "chosen").code == 0
    judged = tmp_path / "judged"
    judged.mkdir()
    endpoint = Endpoint(model="m", price=Price(prompt=10.0, completion=0.0))
    requests = [ChatRequest(({"role": "user", "content": str(number)},)) for number in range(4)]

    def reply(request: ChatRequest) -> Reply:
        return Reply("ok", (Choice("B", "stop"),), Usage(1000, 1))

    answer(endpoint, requests, lambda number, reply: None, judged / "replies.sqlite", MockBackend(reply))
    folders = []
    for seed, gain in enumerate((-0.05, -0.04, -0.06)):
        folder = tmp_path / f"seed-{seed}"
        folder.mkdir()
        domain = {"uniform": 1.5, "chosen": 1.5 + gain, "difference": gain, "error": 0.01, "documents": 9}
        write_json(folder / "comparison.json", {"domains": {"d": domain}, "mean_difference": gain, "error": 0.01})
        folders.append(folder)
    options = ["--selection", tmp_path / "chosen", "--judged", judged, "--out", tmp_path / "q.html"]
    done = lmlab("quality", "report", *source, *options, *(part for each in folders for part in ("--compared", each)))
    assert done.code == 0, done.err
    page = (tmp_path / "q.html").read_text("utf-8")
    # 4,000 tokens at 10 dollars a million, for 500 chosen tokens
    assert "$0.0400" in page and "$80.0000" in page
    assert "Seed 3. Bits per byte of two models" in page
    assert "The choice helped: -0.050 [-0.075, -0.025] bits a byte, mean over domains and 3 seeds" in page
    one = lmlab("quality", "report", *source, *options, "--compared", folders[0])
    assert one.code == 0 and "-0.050 ± 0.010 bits a byte" in (tmp_path / "q.html").read_text("utf-8")
    twice = lmlab("quality", "report", *source, *options, "--compared", folders[0], "--compared", f"{folders[0]}/.")
    assert twice.code == 2 and "given twice" in twice.err  # else two equal seeds would show an effect for sure
    wrong = lmlab("quality", "report", *source, *options, "--compared", tmp_path)
    assert wrong.code == 2 and "has no comparison.json" in wrong.err
    wrong = lmlab("quality", "report", *source, "--selection", tmp_path / "chosen", "--judged", tmp_path)
    assert wrong.code == 2 and "no folder of judgments" in wrong.err
