"""Collecting: the split, the account of what is left out, and what is held in memory."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmlab.data import CollectConfig, Document, JsonlSource, Reject, TextSource, collect, read_documents
from lmlab.errors import UserError
from lmlab.files import read_json, read_jsonl


@dataclass
class Items:
    """A source of what it is given."""

    items: object

    def read(self):
        yield from self.items

    def notices(self):
        return []

    def fingerprint(self):
        return {}


def _documents(number, words=60):
    for n in range(number):
        generator = np.random.default_rng(n)
        text = " ".join(f"w{word}" for word in generator.integers(10**6, size=words))
        yield Document(f"d{n}", text, f"domain{n % 3}", f"g{n // 4}")


def _heldout_by_the_rule(documents, fraction, seed):
    """The rule in plain Python."""
    sizes, domains, strata, chosen = Counter(), {}, {}, set()
    for document in documents:
        sizes[document.group] += len(document.text)
        domains.setdefault(document.group, set()).add(document.domain)
    for group, spanned in domains.items():
        strata.setdefault(tuple(sorted(spanned)), []).append(group)
    for groups in strata.values():
        left = fraction * sum(sizes[group] for group in groups)
        for group in sorted(groups, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest()):
            if sizes[group] <= left:
                chosen.add(group)
                left -= sizes[group]
    return chosen


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3), st.integers(1, 60)), min_size=1, max_size=40),
    st.sampled_from([0, 0.08, 0.3, 0.5]),
    st.integers(0, 5),
)
def test_whole_groups_of_each_kind_are_held_out_in_an_order_drawn_from_the_seed(tmp_path_factory, rows, fraction, seed):
    documents = [
        Document(f"d{n}", f"{n} " + "x" * size, f"d{domain}", f"g{group}")
        for n, (group, domain, size) in enumerate(rows)
    ]
    expected = _heldout_by_the_rule(documents, fraction, seed)
    directory = tmp_path_factory.mktemp("out")
    config = CollectConfig(min_bytes=0, near_duplicate_threshold=None, heldout_fraction=fraction)
    report = collect([Items(documents)], config, seed, directory)
    if report["notices"]:  # all groups of some kind are larger than the share: single documents of it
        share = sum(len(each.text) for each in read_documents(directory / "heldout.jsonl"))
        assert share <= fraction * sum(len(each.text) for each in documents)
        assert expected <= set(report["heldout_groups"])
        return
    assert report["heldout_groups"] == sorted(expected)
    assert {document.id for document in read_documents(directory / "heldout.jsonl")} == {
        each.id for each in documents if each.group in expected
    }


def test_every_record_is_accounted_for(tmp_path):
    good = list(_documents(50))
    items = [
        *good,
        Reject("here:1", "broken"),
        Document("short", "few words"),
        Document("long", "word " * 100_000),
        *good[:5],
    ]
    items.append(Document("half", "text \ud800 " * 100))
    report = collect([Items(items)], CollectConfig(max_bytes=100_000, heldout_fraction=0.2), 0, tmp_path)
    assert read_json(tmp_path / "collect.json") == report
    rows = {name: list(read_jsonl(tmp_path / f"{name}.jsonl")) for name in ("train", "heldout", "dropped", "rejects")}
    assert sum(map(len, rows.values())) == len(items)
    for name in ("train", "heldout"):
        assert sum(report[name]["documents"].values()) == len(rows[name])
        assert sum(report[name]["bytes"].values()) == sum(len(row["text"].encode()) for row in rows[name])
    assert {reason: sum(counts["documents"].values()) for reason, counts in report["dropped"].items()} == Counter(
        row["reason"] for row in rows["dropped"]
    )
    assert report["rejects"] == len(rows["rejects"]) == 2
    assert rows["rejects"][1]["where"] == "half"
    assert sum(report["read"]["documents"].values()) == len(items) - 2
    documents = [document for name in ("train", "heldout") for document in read_documents(tmp_path / f"{name}.jsonl")]
    assert sorted(documents, key=lambda document: int(document.id[1:])) == good
    assert {path.name for path in tmp_path.iterdir()} == {
        "train.jsonl",
        "heldout.jsonl",
        "dropped.jsonl",
        "rejects.jsonl",
        "collect.json",
    }


def test_too_many_rejects_stop_the_work_early_and_are_listed(tmp_path):
    read = 0

    def items():
        nonlocal read
        for document in _documents(5000):
            read += 1
            yield Reject(f"place {read}", "broken") if read % 4 == 0 else document

    with pytest.raises(UserError, match="250 of 1,000 records cannot be used; the first is place 4: broken"):
        collect([Items(items())], CollectConfig(), 0, tmp_path)
    assert read == 1000
    assert len(list(read_jsonl(tmp_path / "rejects.jsonl"))) == 250
    assert [path.name for path in tmp_path.iterdir()] == ["rejects.jsonl"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    for name in (".documents.tmp", ".signatures-00007.tmp"):
        (tmp_path / name).write_text("old")
    collect([Items(_documents(20))], CollectConfig(), 0, tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_work_leaves_no_half_file(tmp_path):
    def items():
        yield from _documents(20)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect([Items(items())], CollectConfig(), 0, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_names_of_held_out_groups_are_limited(tmp_path):
    documents = (Document(f"d{n}", f"text {n} " * 30, "text", f"group {n}") for n in range(3000))
    config = CollectConfig(heldout_fraction=0.5, near_duplicate_threshold=None, min_bytes=0)
    report = collect([Items(documents)], config, 0, tmp_path)
    assert len(report["heldout_groups"]) == 1000
    assert report["num_heldout_groups"] == sum(report["heldout"]["documents"].values()) > 1400
    held = {document.group for document in read_documents(tmp_path / "heldout.jsonl")}
    assert held > set(report["heldout_groups"])


@pytest.mark.parametrize("threshold", [None, 0.8])
def test_memory_grows_by_numbers_of_the_documents_and_not_by_their_text(tmp_path, threshold):
    """The peak of two corpora tells what one more document takes."""
    peaks = []
    for number in (2_000, 8_000):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps({"text": document.text}) + "\n" for document in _documents(number)))
        tracemalloc.start()
        collect([JsonlSource(path=str(path))], CollectConfig(near_duplicate_threshold=threshold), 0, tmp_path / "out")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 6_000 < 250  # the text of one takes 470 bytes


@pytest.mark.parametrize("written", ["folder", "file", "glob", "parts"])
def test_what_is_held_out_does_not_depend_on_where_the_files_lie(tmp_path, monkeypatch, written):
    lines = "".join(json.dumps({"text": f"{n} " + "a b c d " * (20 + n)}) + "\n" for n in range(60))
    held = []
    for place in ("one", "two/deeper", "three"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        name = "texts.txt" if written == "parts" else "texts.jsonl"
        (folder / name).write_text("word and more words. " * 3000 if written == "parts" else lines)
        if written == "parts":
            (folder / "others.txt").write_text("other words of this. " * 3000)
        given = {"folder": folder, "file": folder / name, "glob": folder / "*.jsonl", "parts": folder}[written]
        if place == "three":  # by a path from here
            monkeypatch.chdir(folder)
            given = {"folder": ".", "file": name, "glob": "*.jsonl", "parts": "."}[written]
        source = (TextSource if written == "parts" else JsonlSource)(path=str(given))
        report = collect(
            [source], CollectConfig(min_bytes=0, near_duplicate_threshold=None), 0, tmp_path / f"{place}-out"
        )
        held.append(
            (report["heldout_groups"], [d.text for d in read_documents(tmp_path / f"{place}-out/heldout.jsonl")])
        )
    assert held[0][1] and held[0] == held[1] == held[2]


def _repetitive(domain, number, distinct):
    """A text of 400 words, of which so many are different."""
    generator = np.random.default_rng(number)
    words = [f"w{word:06}" for word in generator.integers(10**6, size=distinct)]
    return Document(f"{domain}{number}", " ".join(words[n] for n in generator.integers(distinct, size=400)), domain)


def test_what_gzip_compresses_most_and_least_is_dropped_in_each_domain(tmp_path):
    # prose of domain b repeats itself more than all of a: each domain is ranked by itself
    documents = [_repetitive("a", n, 100 + 30 * n) for n in range(10)] + [_repetitive("b", n, 4 + n) for n in range(10)]
    documents += [Document("tiny", "w w", "a"), Document("huge", "x" * 200_000, "b")]  # of no rank
    config = CollectConfig(
        min_bytes=10,
        max_bytes=100_000,
        near_duplicate_threshold=None,
        heldout_fraction=0,
        compressible_between=(0.2, 0.7),
    )
    report = collect([Items(documents)], config, 0, tmp_path)
    kept = [document.id for document in read_documents(tmp_path / "train.jsonl")]
    assert kept == [f"{domain}{n}" for domain in "ab" for n in range(3, 8)]
    dropped = {row["id"]: (row["reason"], row["setting"]) for row in read_jsonl(tmp_path / "dropped.jsonl")}
    assert {name for name, why in dropped.items() if why == ("repeats itself", "compressible_between")} == {
        f"{domain}{n}" for domain in "ab" for n in range(3)
    }
    assert {name for name, (reason, _) in dropped.items() if reason == "repeats nothing"} == {"a8", "a9", "b8", "b9"}
    assert dropped["tiny"][0] == "too short" and dropped["huge"][0] == "too long"
    assert report["dropped"]["repeats itself"]["documents"] == {"a": 3, "b": 3}
    with pytest.raises(ValueError, match="compressible_between must rise"):
        CollectConfig(compressible_between=(0.8, 0.2))
