"""`lmlab poison` from crafting to the report, and what it says to bad input."""

from __future__ import annotations

import gzip
import io
import json

import numpy as np
import pytest
import torch

from lmlab import cli
from lmlab.commands.retrieval import stores
from lmlab.methods.corpus_poisoning.commands.shared import retriever
from lmlab.methods.corpus_poisoning.defend import run as defend_run
from lmlab.methods.corpus_poisoning.measure.carriers import carriers
from lmlab.methods.corpus_poisoning.setup import Target
from lmlab.retrieval.collections.read import judged_queries
from lmlab.retrieval.config import EncoderConfig
from tiny_retriever import write_collection, write_retriever


@pytest.fixture
def run(capsys, monkeypatch):
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["lmlab", "poison", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture(scope="module")
def common(place, small, tmp_path_factory):
    return ["--encoder", place, "--cache", tmp_path_factory.mktemp("shared-cache"), "--precision", "fp32"]


FAST = ("--k", 3, "--length", 10, "--evaluations", 120, "--candidates", 12)


@pytest.fixture(scope="module")
def attack(common, small, tmp_path_factory):
    from lmlab.methods.corpus_poisoning import CraftConfig
    from lmlab.methods.corpus_poisoning.attack.run import craft_for

    out = tmp_path_factory.mktemp("attack")
    config = CraftConfig(k=3, length=10, evaluations=120, candidates=12)
    craft_for(retriever(EncoderConfig(encoder=str(common[1]), cache=common[3])), str(small), "train", config, out)
    return out


def test_passages_are_crafted_with_the_references_names_of_options_and_evaluated(run, common, small, tmp_path):
    out = tmp_path / "attack"
    code, text, err = run(
        "craft", "--dataset", small, "--model_code", common[1], *common[2:], *FAST, "--output_file", out
    )
    assert code == 0 and f"{out}/adversarial.jsonl" in text and "To remove them" in text, err
    figures = tmp_path / "figures.json"
    code, text, _ = run(
        "evaluate",
        "--passages",
        out,
        "--data",
        small,
        *common,
        "--k",
        5,
        "--k",
        20,
        "--index",
        "hnsw",
        "--out",
        figures,
    )
    assert code == 0 and "By the index hnsw" in text and "Clean nDCG@10" in text
    found = json.loads(figures.read_text())
    assert found["by_index"]["hnsw"] == found["asr"]  # candidates are scored again, and here all are found
    assert found["perfect"].keys() == {"5", "20"} and found["passages"] == 3
    code, text, err = run(
        "evaluate", "--passages", out, "--data", small, *common, "--split", "train", "--attack-queries", small, "--json"
    )
    assert code == 2 and "0 are held out" in err
    code, text, err = run(
        "evaluate",
        *("--passages", out, "--data", small, *common, "--split", "train", "--attack-queries", small, "--json"),
        *("--allow-overlap", "--k", 5),
    )
    assert code == 0 and "40 evaluated queries are the attacker's too" in err and json.loads(text)["queries"] == 40


def test_settings_come_from_a_file_and_from_set(run, common, small, tmp_path):
    (tmp_path / "settings.yaml").write_text("k: 2\nlength: 8\nevaluations: 40\noptimizer: none\n")
    arguments = ("--config", tmp_path / "settings.yaml", "--set", "seed=3", "--out", tmp_path / "out")
    code, _, err = run("craft", "--data", small, *common, *arguments)
    assert code == 0, err
    about = json.loads((tmp_path / "out" / "craft.json").read_text())
    assert about["config"]["length"] == 8 and about["config"]["seed"] == 3 and about["config"]["optimizer"] == "none"
    code, _, err = run("craft", "--data", small, *common, "--set", "lenght=3")
    assert code == 2 and "Did you mean 'length'" in err
    note = tmp_path / "payload.txt"
    note.write_text("the captain is a sailor\n")
    out = tmp_path / "told"
    code, _, err = run("craft", "--data", small, *common, *FAST, "--payload-file", note, "--out", out)
    rows = [json.loads(line) for line in (out / "adversarial.jsonl").read_text().splitlines()]
    assert "does not see case" not in err  # it is written as it is read
    assert code == 0 and all(row["text"].startswith("the captain is a sailor ") for row in rows)
    assert json.loads((out / "craft.json").read_text())["payload"] == "the captain is a sailor"


def test_a_payload_whose_case_is_lost_is_told_as_it_is_read(run, common, small, tmp_path):
    note = tmp_path / "payload.txt"
    note.write_text("The Captain\n")
    code, text, err = run(
        "craft", "--data", small, *common, *FAST, "--payload-file", note, "--out", tmp_path / "out", "--json"
    )
    assert code == 0 and "reads the payload as 'the captain'" in " ".join(err.split())
    assert json.loads(text)["payload"] == "The Captain" and json.loads(text)["passages"] == 3


def test_success_is_told_for_a_concept_and_without_judgments(run, common, small, attack, tmp_path):
    given = ("evaluate", "--passages", attack, *common, "--k", 5, "--json")
    word = json.loads((small / "queries.jsonl").read_text().splitlines()[-1])["text"].split()[2]
    code, text, err = run(*given, "--data", small, "--concept", word.upper())
    assert code == 0 and json.loads(text)["queries"] < 40 and "queries were chosen" in err
    code, _, err = run(*given, "--data", small, "--concept", "submarine")
    assert code == 2 and "None of 40 queries holds 'submarine'" in err
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("corpus.jsonl", "queries.jsonl"):
        (bare / name).write_bytes((small / name).read_bytes())
    code, text, err = run(*given, "--data", bare, "--allow-overlap")
    found = json.loads(text)
    assert code == 0 and found["queries"] == 80 and found["ndcg_before"] is None and "no judgments" in err


def test_vectors_that_retrieval_has_stored_are_taken(small, place, tmp_path):
    settings = EncoderConfig(encoder=str(place), cache=tmp_path / "cache")
    target = Target.load(retriever(settings), str(small), "train")
    stores(target.data, target.retriever.encoder, settings)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.*")}
    assert len(target.documents) == len(target.data.corpus.ids) and len(target.queries()) == len(
        target.data.queries.ids
    )
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.*")} == written


def test_a_collection_smaller_than_the_default_depths_is_measured_at_those_it_has(run, place, attack, tmp_path):
    data = write_collection(tmp_path / "few", documents=18, queries=12)
    common = ("--data", data, "--encoder", place, "--cache", tmp_path / "cache", "--precision", "fp32")
    code, text, err = run("evaluate", "--passages", attack, *common, "--json", "--allow-overlap")
    assert code == 0 and list(json.loads(text)["asr"]) == ["1", "3", "5", "10"], err
    code, _, err = run("evaluate", "--passages", attack, *common, "--k", 20, "--allow-overlap")
    assert code == 2 and "The success at 20 means nothing in a corpus of 18 documents" in err
    code, _, err = run("craft", *common, *FAST, "--objective", "coverage", "--out", tmp_path / "out")
    assert code == 2 and "coverage_rank 20 is above the 18 documents" in err and "--coverage-rank" in err
    code, _, err = run("harden", *common, *FAST, "--out", tmp_path / "hardened")
    assert code == 2 and "The success at 20 means nothing" in err and "Lower --depth" in err
    assert not (tmp_path / "hardened").exists()


def test_documents_alone_can_be_attacked_measured_and_defended(run, place, small, tmp_path):
    """With questions of elsewhere, whatever splits the collection has, or none, or no questions at all."""
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "corpus.jsonl").write_text((small / "corpus.jsonl").read_text())
    common = ("--data", alone, "--encoder", place, "--cache", tmp_path / "cache", "--precision", "fp32")
    lines = (small / "queries.jsonl").read_text().splitlines(keepends=True)
    mine, others = tmp_path / "mine.jsonl", tmp_path / "others.jsonl"
    mine.write_text("".join(lines[:40]))
    others.write_text("".join(lines[40:]))
    out, gate = tmp_path / "attack", tmp_path / "gate"
    code, _, err = run("craft", *common, *FAST, "--queries", mine, "--objective", "coverage", "--out", out)
    assert code == 0, err
    code, text, err = run("evaluate", "--passages", out, *common, "--queries", others, "--json")
    found = json.loads(text)
    assert code == 0 and found["queries"] == 40 and found["ndcg_before"] is None, err
    split = ("--queries", others, "--split", "test")
    whole = ("--data", small, "--encoder", place, "--cache", tmp_path / "cache", "--precision", "fp32")
    code, text, _ = run("evaluate", "--passages", out, *whole, *split, "--json")
    assert code == 0 and json.loads(text)["asr"] == found["asr"] and json.loads(text)["ndcg_before"] is not None
    assert run("detect", "fit", *common, "--sentinels", others, "--rate", "0.05", "--out", gate)[0] == 0
    code, text, _ = run("detect", "score", "--passages", out, "--gate", gate, *common)
    assert code == 0 and json.loads(text)["clean"] == 60
    code, _, err = run("craft", *common, *FAST, "--queries", mine, "--start", "gold", "--out", tmp_path / "gold")
    assert code == 2 and "queries.jsonl" in err


def test_where_queries_are_documents_the_deepest_default_is_what_others_leave(run, place, attack, tmp_path):
    data = write_collection(tmp_path / "self", documents=20, queries=12)
    for path in (data / "queries.jsonl", *(data / "qrels").iterdir()):
        path.write_text(path.read_text().replace('"q0', '"d0').replace("\nq0", "\nd0"))
    common = ("--data", data, "--encoder", place, "--cache", tmp_path / "cache", "--precision", "fp32")
    code, text, err = run("evaluate", "--passages", attack, *common, "--json", "--allow-overlap")
    assert code == 0 and list(json.loads(text)["asr"]) == ["1", "3", "5", "10"], err
    code, _, err = run("report", "--passages", attack, *common, "--no-defenses", "--out", tmp_path / "r")
    assert code == 0, err


def test_passages_that_are_no_text_are_told_by_ids_too(run, common, small, place, tmp_path):
    row = {"it": 1, "best_acc": 0.5, "dummy": ["##s", "[MASK]", "sea", "##ing"], "tot": 9}
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "nq-contriever-k1-s0.json").write_text(json.dumps(row))
    code, _, err = run("import", tmp_path / "theirs", "--encoder", place, "--out", tmp_path / "ours")
    assert code == 0, err
    given = ("evaluate", "--passages", tmp_path / "ours", "--data", small, *common, "--k", 5)
    code, text, _ = run(*given)
    assert code == 0 and "The texts of 1 of 1 passage are read as other tokens. As token ids alone: 5:" in text
    code, text, _ = run(*given, "--json")
    assert json.loads(text)["asr_ids"].keys() == {"5"}


def test_a_gate_is_fitted_and_asked_by_a_pipeline(run, common, small, attack, tmp_path, monkeypatch):
    gate, both = tmp_path / "gate", ("--detector", "hubness", "--detector", "similarity", "--sentinels", small)
    code, text, err = run("detect", "fit", "--data", small, *common, *both, "--rate", "0.05", "--out", gate)
    assert code == 0 and "refuses 5 % of clean passages" in text, err
    verdicts = tmp_path / "verdicts.jsonl"
    code, _, err = run("gate", small / "corpus.jsonl", "--gate", gate, "--encoder", common[1], "--out", verdicts)
    rows = [json.loads(line) for line in verdicts.read_text().splitlines()]
    assert code == 0 and len(rows) == 120 and f"{sum(not row['admit'] for row in rows)} refused" in err
    assert sum(not row["admit"] for row in rows) <= 12
    packed = tmp_path / "corpus.jsonl.gz"
    packed.write_bytes(gzip.compress((small / "corpus.jsonl").read_bytes()))
    code, text, _ = run("gate", packed, "--gate", gate, "--encoder", common[1])
    assert code == 0 and text == verdicts.read_text()
    source = attack / "adversarial.jsonl"
    code, text, _ = run("gate", source, "--gate", gate, "--encoder", common[1], "--fail")
    refused = [not json.loads(line)["admit"] for line in text.splitlines()]
    assert code == (1 if any(refused) else 0) and len(refused) == 3
    code, text, _ = run("detect", "score", "--passages", attack, "--gate", gate, *common, "--data", small)
    found = json.loads(text)
    assert found["refused"] == sum(refused) and found["auroc"]["similarity"] > 0.8
    assert (found["clean"], found["clean_left_out"]) == (60, 60)  # those that detectors were fitted on tell nothing
    code, text, _ = run("detect", "sweep", "--data", small, *common, "--passages", attack, *both)
    curves = json.loads(text)
    assert all(point["fpr"] <= point["rate"] + 1e-9 for point in curves["hubness"])
    pairs = ("detect", "fit", "--data", small, *common, "--rate", "0.05", "--detector", "near_duplicate")
    code, text, _ = run(*pairs, "--out", tmp_path / "pairs", "--json")
    told = {"detectors": ["near_duplicate"], "rate": 0.05, "out": str(tmp_path / "pairs")}
    assert code == 0 and json.loads(text) == told
    code, _, err = run("gate", source, "--gate", tmp_path / "pairs", "--encoder", common[1])
    assert code == 2 and "here each comes alone" in " ".join(err.split())
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    code, _, err = run("gate", tmp_path / "latin.jsonl", "--gate", gate, "--encoder", common[1])
    assert code == 2 and "UTF-8" in err, err
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n{"text": 3}\n')
    code, text, err = run("gate", tmp_path / "bad.jsonl", "--gate", gate, "--encoder", common[1])
    assert code == 2 and "line 2: the key 'text' must hold a passage" in err
    assert json.loads(text)["_id"] == "1"  # the verdict on what came before stands
    monkeypatch.setattr("sys.stdin", io.StringIO((small / "corpus.jsonl").read_text()))
    code, text, _ = run("gate", "-", "--gate", gate, "--encoder", common[1])  # one at a time, as somebody waits
    assert code == 0 and [json.loads(line)["admit"] for line in text.splitlines()] == [row["admit"] for row in rows]
    code, text, err = run("gate", "/dev/null", "--gate", gate, "--encoder", common[1])  # what is no plain file
    assert code == 0 and not text and "0 admitted, 0 refused" in err
    code, _, err = run("gate", source, "--gate", tmp_path, "--encoder", common[1])
    assert code == 2 and "holds no gate" in err


def test_a_report_has_defenses_beside_every_attack_or_says_that_it_has_none(run, common, small, attack, tmp_path):
    arguments = ("report", "--data", small, *common, "--passages", attack, "--k", 10, "--k", 20, "--out", tmp_path)
    code, _, err = run(*arguments)
    assert code == 2 and "needs a table of defenses beside them" in err and not (tmp_path / "report.html").exists()
    code, text, err = run(*arguments, "--sentinels", small, "--detector", "hubness", "--detector", "similarity")
    assert code == 2 and "120 clean passages" not in text and "cannot tell a threshold" in err
    arguments = (*arguments, "--rate", "0.05")
    code, text, err = run(*arguments, "--sentinels", small, "--detector", "hubness", "--detector", "questions")
    rows = json.loads((tmp_path / "report.json").read_text())["defenses"]
    assert code == 0 and [row["defense"] for row in rows] == ["hubness", "questions", "stack", "fusion with BM25"]
    undefended = json.loads((tmp_path / "report.json").read_text())["attacks"][0]["found"]["asr"]
    for row in rows[:3]:
        refused = row["tpr"][next(iter(row["tpr"]))]
        assert 0 <= row["fpr"] <= 0.35 and row["ndcg_change"] <= 0.05
        assert row["asr"]["20"] <= undefended["20"] + 0.1 and (refused < 1 or row["asr"]["20"] == 0)
    page = (tmp_path / "report.html").read_text()
    assert "ASR@20, undefended" in page and "ASR@20, defended" in page and "Clean nDCG@10" in page
    code, text, err = run(*arguments, "--no-defenses", "--json")
    assert json.loads(text)["attacks"][0]["found"]["asr"] == undefended
    page = (tmp_path / "report.html").read_text()
    assert code == 0 and "has no table of defenses, as was asked for" in page
    assert "no table of defenses" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["defenses"] is None


def test_a_report_asks_the_same_queries_with_defenses_as_without(run, common, small, tmp_path, monkeypatch):
    """Those that the attacker had are in neither figure: else a defense that refuses nothing looks worse than none."""
    mine = tmp_path / "mine.jsonl"
    rows = [json.loads(line) for line in (small / "queries.jsonl").read_text().splitlines()]
    judged = [id for id in (row["_id"] for row in rows) if id in judged_queries(small)["test"]]
    mine.write_text("".join(json.dumps(row) + "\n" for row in rows if row["_id"] in judged[::2]))
    out, page = tmp_path / "attack", tmp_path / "report"
    assert run("craft", "--data", small, *common, *FAST, "--queries", mine, "--out", out)[0] == 0
    seen = []
    for name in ("measure_defenses", "measure_fusion"):
        plain = getattr(defend_run, name)

        def noted(*given, plain=plain, **named):
            seen.append(named["asked"])
            return plain(*given, **named)

        monkeypatch.setattr(defend_run, name, noted)
    given = ("report", "--data", small, *common, "--passages", out, "--sentinels", small, "--k", 10, "--out", page)
    for more, numbers in (((), range(1, len(judged), 2)), (("--allow-overlap",), range(len(judged)))):
        code, _, err = run(*given, "--detector", "similarity", "--rate", "0.05", *more)
        assert code == 0, err
        assert json.loads((page / "report.json").read_text())["attacks"][0]["found"]["queries"] == len(numbers)
        assert seen == [{"attack": list(numbers)}] * 2
        seen.clear()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("craft", "--k", 99, "--length", 10), "99 clusters of 40 distinct queries"),
        (("craft", "--k", 2, "--length", 40), "A passage of 40 tokens and 2 around it has 42; the encoder reads 32"),
        (("craft", "--k", 2, "--optimizer", "flip"), "optimizer: input should be 'multiflip'"),
        (("craft", "--k", 2, "--payload-file", "nothing.txt"), "No such file: 'nothing.txt'"),
        (("evaluate", "--passages", "nowhere", "--k", 200), "holds no adversarial.jsonl"),
        (("evaluate", "--passages", "nowhere", "--index", "tree"), "index: input should be 'exact'"),
    ],
)
def test_bad_input_ends_with_exit_code_2_and_a_sentence(run, common, small, tmp_path, arguments, message):
    code, _, err = run(arguments[0], "--data", small, *common, *arguments[1:])
    assert code == 2 and message in err and "Traceback" not in err


def test_the_purpose_is_said_in_help_module_and_page(run):
    from pathlib import Path

    import lmlab.methods.corpus_poisoning as package

    assert "one's own retriever" in package.__doc__ and "one's own corpora" in package.__doc__
    code, text, _ = run("--help")
    assert code == 0 and "one's own retriever" in " ".join(text.split())
    page = (Path(__file__).parents[3] / "docs" / "methods" / "corpus_poisoning.md").read_text()
    page = " ".join(page.replace("\n> ", " ").split())
    assert (
        "robustness evaluation of one's own retriever" in page and "Defenses stand beside every attack figure" in page
    )


def test_a_dot_product_retriever_is_told_of_long_vectors(run, tmp_path):
    place = write_retriever(tmp_path / "dot", normalize=False)
    data = write_collection(tmp_path / "data", 60, 40)
    common = ("--data", data, "--encoder", place, "--cache", tmp_path / "cache", "--precision", "fp32")
    code, _, err = run("craft", *common, *FAST, "--out", tmp_path / "out")
    assert code == 0, err
    code, text, err = run("evaluate", "--passages", tmp_path / "out", *common, "--k", 5, "--json")
    norms = json.loads(text)["norms"]
    told = "By the dot product length alone ranks it higher" in err
    assert code == 0 and told == (norms["crafted_max"] > norms["clean_p99"])


def test_other_tools_files_are_written_and_read_and_what_was_read_is_told_as_json(run, place, attack, tmp_path):
    exported = ("export", attack, "--out", tmp_path / "theirs", "--name", "small", "--encoder", place)
    code, text, err = run(*exported, "--json")
    assert code == 0 and json.loads(text) == {"files": 3, "out": str(tmp_path / "theirs")}, err
    given = ("import", tmp_path / "theirs", "--encoder", place, "--out", tmp_path / "ours", "--json")
    code, text, err = run(*given)
    assert code == 0, err
    out = str(tmp_path / "ours")
    assert json.loads(text) == {"passages": 3, "k": 3, "found": 3, "round_trip": 3, "out": out}
    ours, theirs = ((folder / "adversarial.jsonl").read_text() for folder in (tmp_path / "ours", attack))
    told = [[json.loads(line)["text"] for line in text.splitlines()] for text in (ours, theirs)]
    assert told[0] == told[1]
    next((tmp_path / "theirs").glob("*-s1.json")).unlink()
    code, _, err = run(*given)
    assert code == 2 and "lacks 1 of 3 clusters: s1" in err
    code, text, _ = run(*given, "--partial")
    assert code == 0 and json.loads(text)["found"] == 2 and json.loads(text)["k"] == 3
    question = {"id": "q1", "question": "who", "correct answer": "a", "incorrect answer": "b", "adv_texts": ["x", "y"]}
    (tmp_path / "rag.json").write_text(json.dumps({"q1": question}))
    code, text, _ = run("import", tmp_path / "rag.json", "--form", "poisonedrag", "--out", tmp_path / "rag", "--json")
    assert code == 0 and json.loads(text) == {"passages": 2, "out": str(tmp_path / "rag")}


def test_the_attackers_own_questions_are_told_by_the_passages_and_left_out(run, common, small, attack, tmp_path):
    given = ("evaluate", "--passages", attack, "--data", small, *common, "--k", 5, "--json")
    code, _, err = run(*given, "--split", "train")
    assert code == 2 and "0 are held out" in err
    code, text, err = run(*given, "--split", "train", "--allow-overlap")
    assert code == 0 and json.loads(text)["queries"] == 40 and "40 evaluated queries are the attacker's too" in err
    code, text, err = run(*given)
    assert code == 0 and json.loads(text)["queries"] == 40 and "attacker" not in err


def test_other_questions_with_the_collections_ids_have_none_of_its_judgments(run, common, small, attack, tmp_path):
    rows = [json.loads(line) for line in (small / "queries.jsonl").read_text().splitlines()[40:60]]
    texts = "".join(json.dumps({**row, "text": f"how big is {row['text'][8:]}"}) + "\n" for row in rows)
    (tmp_path / "others.jsonl").write_text(texts)
    given = ("evaluate", "--passages", attack, "--data", small, *common, "--k", 5, "--json", "--queries")
    code, text, err = run(*given, tmp_path / "others.jsonl")
    found = json.loads(text)
    assert code == 0 and found["queries"] == 20, err
    assert (found["ndcg_before"], found["ndcg_after"], found["beats_gold"]) == (None, None, None)
    (tmp_path / "same.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, text, _ = run(*given, tmp_path / "same.jsonl")
    assert code == 0 and json.loads(text)["ndcg_before"] > 0


def test_a_payload_that_is_no_text_or_none_is_refused(run, common, small, tmp_path):
    for name, content, message in (("empty", b" \n", "holds no text"), ("odd", b"\xff\xfe", "is not a text")):
        (tmp_path / name).write_bytes(content)
        code, _, err = run("craft", "--data", small, *common, *FAST, "--payload-file", tmp_path / name)
        assert code == 2 and message in err, err


def test_figures_of_a_corpus_that_holds_crafted_documents_are_refused(run, common, small, attack, tmp_path):
    import shutil

    shutil.copytree(small, tmp_path / "mixed")
    with (tmp_path / "mixed" / "corpus.jsonl").open("a") as file:
        file.write((attack / "adversarial.jsonl").read_text())
    code, _, err = run("evaluate", "--passages", attack, "--data", tmp_path / "mixed", *common, "--k", 5)
    assert code == 2 and "marked as crafted by an attack" in err and "line 121" in err


def test_a_matrix_tells_whether_passages_carry_over_to_other_collections_and_retrievers(
    run, common, small, attack, tmp_path
):
    other = write_retriever(tmp_path / "other", seed=7)
    elsewhere = write_collection(tmp_path / "elsewhere", documents=90, queries=30, seed=3)
    arguments = ["--passages", attack, "--encoder", common[1], "--encoder", other, "--data", small, "--data", elsewhere]
    cache = ["--cache", tmp_path / "cache", "--precision", "fp32", "--k", 20]
    code, text, err = run("transfer", *arguments, *cache, "--json", "--out", tmp_path / "matrix.json")
    rows = json.loads(text)
    assert code == 0 and rows == json.loads((tmp_path / "matrix.json").read_text()), err
    assert [(row["data"], row["own_encoder"]) for row in rows] == [
        ("small", True),
        ("elsewhere", True),
        ("small", False),
        ("elsewhere", False),
    ]
    code, text, _ = run("evaluate", "--passages", attack, "--data", small, *common, "--k", 20, "--json")
    assert rows[0]["asr@20"] == json.loads(text)["asr"]["20"] and rows[0]["queries"] == 40
    assert all(row["interval"][0] <= row["asr@20"] <= row["interval"][1] for row in rows)
    code, text, _ = run("transfer", *arguments, *cache)
    assert code == 0 and "(its own)" in text and "elsewhere" in text
    assert run("transfer", *arguments, *cache[:4], "--k", 91)[0] == 2


def test_the_tokens_that_carry_a_passage_are_those_without_which_it_falls(target):
    encoder, query = target.retriever.encoder, target.queries()[0]
    text = "sea ship captain bread sea moon"
    found = carriers(encoder, text, query, most=10)
    ids = encoder.tokenizer.inner([text])[0]
    whole, expected = torch.tensor([encoder.wrap(ids)]), []
    for place in range(len(ids)):
        left = torch.tensor([encoder.wrap([*ids[:place], *ids[place + 1 :]])])
        with torch.no_grad():
            both = [float(encoder.encode_ids(rows)[0] @ torch.from_numpy(query)) for rows in (whole, left)]
        expected.append(both[0] - both[1])
    assert [loss for _, loss in found] == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
    assert found[0][0] == text.split()[int(np.argmax(expected))]
    assert carriers(encoder, "", query) == [] and carriers(encoder, "[CLS]", query) == []
