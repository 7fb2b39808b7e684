"""HELMET's files are read as they are, and results have its names."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.evals.long import (
    Asking,
    Reached,
    helmet_instances,
    judge,
    prompt_of,
    read_helmet_config,
    suites,
    task_name,
)
from lmlab.evals.long.helmet.results import read_helmet_results
from lmlab.models import ModelConfig, Transformer, save_pretrained

TEXT = "The quick brown fox jumps over the lazy dog. " * 20


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([TEXT, "0123456789 Key Document Title value answer Ranking ID"], 320)


def _kilt(number, depth, **more):
    passages = [{"title": f"t{n}", "text": f"passage {n} {TEXT[:60]}"} for n in range(4)]
    return {
        "id": f"q{number}",
        "question": f"who {number}",
        "answers": ["fox", "a fox"],
        "ctxs": passages,
        "depth": depth,
        **more,
    }


@pytest.fixture
def data(tmp_path):
    files = {
        "json_kv/test_k3_dep6.jsonl": [
            {"context": '{"a": "1", "b": "2", "c": "3"}', "question": q, "answer": a, "demos": [["x", "8"], ["y", "9"]]}
            | {"num_kvs": 3, "depth": 0.5}
            for q, a in (("a", "1"), ("b", "2"))
        ],
        "kilt/nq-dev_k4_dep6.jsonl": [_kilt(number, depth) for number in range(5) for depth in (0.0, 0.5, 1.0)],
        "kilt/demos.jsonl": [_kilt(number, 0.0) for number in (7, 7, 8, 9)],
        "msmarco/test_k3.jsonl": [
            {"qid": "1", "query": "what", "ctxs": [{"id": str(n), "text": TEXT[:50], "label": n} for n in range(3)]}
        ],
    }
    for name, rows in files.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


def _config(tmp_path, **changes):
    given = {
        "input_max_length": "512,900,700",
        "datasets": "json_kv,kilt_nq,msmarco_rerank_psg",
        "generation_max_length": "10,20,30",
        "test_files": "data/json_kv/test_k3_dep6.jsonl,data/kilt/nq-dev_k4_dep6.jsonl,data/msmarco/test_k3.jsonl",
        "demo_files": ",data/kilt/demos.jsonl,",
        "use_chat_template": False,
        "max_test_samples": 2,
        "shots": 2,
        "stop_new_line": True,
    }
    path = tmp_path / "helmet.yaml"
    path.write_text(yaml.safe_dump(given | changes))
    return path


def test_configurations_are_parallel_lists(tmp_path):
    first, second, third = read_helmet_config(_config(tmp_path))
    assert (first.name, first.length, first.budget, first.demo_file) == ("json_kv", 512, 10, "")
    assert (second.length, second.shots, second.samples, third.budget) == (900, 2, 2, 30)
    assert {each.length for each in read_helmet_config(_config(tmp_path, input_max_length=4096))} == {4096}
    with pytest.raises(UserError, match="test_files has 2 entries for 3 datasets"):
        read_helmet_config(_config(tmp_path, test_files="a,b"))
    with pytest.raises(UserError, match="unknown key 'dataset'"):
        read_helmet_config(_config(tmp_path, dataset="x"))


@pytest.mark.parametrize(
    "change", [{"shots": "x"}, {"shots": -1}, {"max_test_samples": None}, {"use_chat_template": "False"}]
)
def test_values_that_are_none_are_named(tmp_path, change):
    with pytest.raises(UserError, match=f"{next(iter(change))} holds"):
        read_helmet_config(_config(tmp_path, **change))


def test_files_without_questions_are_named_and_examples_are_as_many_as_asked_for(tmp_path, data, tokenizer):
    recall = read_helmet_config(_config(tmp_path, shots=1))[0]
    prompt = prompt_of(helmet_instances(Asking(tokenizer), recall, data)[0])
    assert "Key: x" in prompt and "Key: y" not in prompt
    for text in ("[1, 2]", "{}", "[]"):
        (data / "bad.json").write_text(text)
        with pytest.raises(UserError, match="holds no questions"):
            helmet_instances(Asking(tokenizer), replace(recall, test_file="data/bad.json"), data)


def test_distinct_questions_are_drawn_with_all_their_depths(tmp_path, data, tokenizer):
    _, kilt, rerank = read_helmet_config(_config(tmp_path))
    asking = Asking(tokenizer)
    found = helmet_instances(asking, kilt, data)
    assert len(found) == 2 * 3 and len({each.question for each in found}) == 2
    assert sorted({each.depth for each in found}) == [0.0, 0.5, 1.0]
    for each in found:
        assert each.prompt_tokens == len(asking.ids(each)) <= 900 - 20
        assert prompt_of(each).endswith(f"{each.question}\nAnswer:")  # cut within the context alone
    (ranked,) = helmet_instances(asking, rerank, data)
    assert ranked.answer == ["2 > 1 > 0"] and ranked.meta["labels"] == {"0": 0, "1": 1, "2": 2}
    with pytest.raises(UserError, match="'trec' of HELMET is not read"):
        helmet_instances(asking, read_helmet_config(_config(tmp_path, datasets="trec,trec,trec"))[0], data)
    outside = read_helmet_config(_config(tmp_path, test_files="../x.jsonl"))[0]
    with pytest.raises(UserError, match="outside the folder"):
        helmet_instances(asking, outside, data)


def test_the_command_writes_files_of_helmets_names(tmp_path, data, tokenizer, lmlab):
    shape = ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=1, d_model=16, num_heads=2, max_seq_len=1024)
    save_pretrained(Transformer(shape).initialize(0), tmp_path / "model")
    tokenizer.save(tmp_path / "model", 1024)
    how = ("--data", data, "--config", _config(tmp_path), "--out", tmp_path / "out", "--precision", "fp32")
    done = lmlab("long", "helmet", tmp_path / "model", *how)
    assert done.code == 0, done.err
    names = sorted(path.name for path in (tmp_path / "out").glob("*_eval_*.json"))
    assert names[0].startswith(
        "json_kv_eval_test_k3_dep6_in512_size2_shots2_sampFalsemax10min0t0.0p1.0_chatFalse_42.json"
    )
    assert all((tmp_path / "out" / f"{name}.score").is_file() for name in names) and len(names) == 3
    result = json.loads((tmp_path / "out" / names[0]).read_text())
    assert set(result) == {"args", "data", "metrics", "averaged_metrics"} and len(result["data"]) == 2
    figures = [set(json.loads((tmp_path / "out" / f"{name}.score").read_text())) for name in names]
    for name, found in zip(("substring_exact_match", "substring_exact_match", "NDCG@10"), figures, strict=True):
        assert name in found  # what HELMET's collector looks for
    suites = json.loads((tmp_path / "out" / "helmet.json").read_text())
    assert set(suites["tasks"]) == {
        "helmet_json_kv__512",
        "helmet_kilt_nq__900",
        "helmet_msmarco_rerank_psg__700",
    }
    assert suites["suites"]["helmet_recall__512"] == result["averaged_metrics"]["substring_exact_match"]


def _official(folder, dataset, size, figures, judged=None, model="theirs"):
    """A result as HELMET itself writes it."""
    folder.mkdir(exist_ok=True)
    stem = f"{dataset}_v1_test_in{size}_size100_shots2_sampFalsemax50min0t0.0p1.0_chatFalse_42"
    args = {"datasets": dataset, "input_max_length": size, "model_name_or_path": model, "tag": "v1"}
    for name, means in ((f"{stem}.json", figures), (f"{stem}-gpt4eval_o.json", judged)):
        if means is not None:
            (folder / name).write_text(json.dumps({"args": args, "data": [], "metrics": {}, "averaged_metrics": means}))


def test_results_that_helmet_has_written_stand_beside_ours(tmp_path, lmlab):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    _official(theirs, "json_kv", 8192, {"substring_exact_match": 80.0, "rougeL_f1": 3.0})
    _official(theirs, "ruler_niah_mk_2", 8192, {"ruler_recall": 40.0})
    _official(theirs, "narrativeqa_7892", 8192, {"rougeL_f1": 9.0}, {"gpt-4-score": 1.5})
    _official(theirs, "multi_lexsum_7492", 8192, {"rougeL_f1": 9.0}, {"gpt-4-f1": 0.25})
    _official(theirs, "infbench_sum_eng_7492", 8192, {"rougeL_f1": 9.0})
    found = read_helmet_results(theirs)
    assert found.tasks["helmet_narrativeqa__8192"] == 50 and found.tasks["helmet_multi_lexsum__8192"] == 25
    assert found.tasks["helmet_infbench_sum_eng__8192"] is None  # its judge has not spoken: never its ROUGE
    # what ALCE's own evaluation has found out stands in NAME.json.score alone
    _official(theirs, "alce_asqa_30", 8192, {"input_len": 7000.0})
    (cited,) = theirs.glob("alce_asqa_30*.json")
    cited.with_name(f"{cited.name}.score").write_text('{"length": 60.5, "str_em": 40.0, "citation_rec": 30.0}')
    assert read_helmet_results(theirs).tasks["helmet_alce_asqa__8192"] == 40
    assert found.suites["helmet_recall__8192"] == 60 and "helmet_summ__8192" not in found.suites
    _official(ours, "narrativeqa_7892", 8192, {"rougeL_f1": 9.0}, model="ours")
    (ours / "helmet.json").write_text(json.dumps({"tasks": {"helmet_narrativeqa__8192": 70.0}, "suites": {}}))
    assert read_helmet_results(ours).tasks == {"helmet_narrativeqa__8192": 70}
    done = lmlab("long", "report", theirs, ours, "--out", tmp_path / "page.html")
    assert done.code == 0, done.err
    page = (tmp_path / "page.html").read_text()
    assert "helmet_niah_mk_2__8192" in page and "theirs" in page and "helmet_longqa__8192" in page
    _official(tmp_path / "again", "json_kv", 8192, {"substring_exact_match": 70.0})
    assert lmlab("long", "report", theirs, tmp_path / "again", "--out", tmp_path / "page.html").code == 0
    page = (tmp_path / "page.html").read_text()
    assert "1. theirs" in page and "2. theirs" in page  # two runs of one model
    _official(ours, "json_kv", 8192, {"substring_exact_match": 1.0}, model="another")
    refused = lmlab("long", "report", theirs, ours, "--out", tmp_path / "page.html")
    assert refused.code == 2 and "several models: another, ours" in refused.err
    (theirs / "json_kv_v2_in8192_size1_shots1.json").write_text('{"args": {}, "averaged_metrics": {}}')
    refused = lmlab("long", "report", theirs, "--out", tmp_path / "page.html")
    assert refused.code == 2 and "json_kv_v2" in refused.err and "no result of HELMET" in refused.err
    with pytest.raises(UserError, match="holds no results of HELMET"):
        read_helmet_results(tmp_path)


def test_names_and_suites_are_those_of_olmo_eval():
    assert task_name("kilt_popqa_3", 8192) == "helmet_kilt_popqa__8192"
    assert task_name("icl_trec_coarse_400shot_balance", 8192) == "helmet_icl_trec_coarse__8192"
    assert task_name("infbench_choice_eng_3886", 4096) == "helmet_infbench_choice_eng__4096"
    assert task_name("alce_asqa_nocite_30", 4096) == "helmet_alce_asqa_nocite__4096"
    assert task_name("icl_clinic150_440shot_balance", 8192) == "helmet_icl_clinic150__8192"
    assert task_name("ruler_niah_mk_2", 4096) == "helmet_niah_mk_2__4096"
    found = [Reached("json_kv", 4096, 80.0, False), Reached("ruler_niah_mk_2", 4096, 40.0, False)]
    found += [Reached("infbench_qa_eng_3886", 4096, 20.0, False), Reached("narrativeqa_3796", 4096, None, True)]
    means = suites(found)
    # a mean that would lack a figure is left out
    assert means == {"helmet_recall__4096": 60, "helmet_longqa_nojudge__4096": 20, "helmet_nojudge__4096": 40}
    means = suites([*found[:3], Reached("narrativeqa_3796", 4096, 40.0, True)])
    assert means["helmet_longqa__4096"] == 30 and means["helmet_all__4096"] == 45
    assert means["helmet_nojudge__4096"] == 40


ASQA = {
    "question": "Who rules?",
    "qa_pairs": [{"short_answers": ["the queen", "Elizabeth"]}, {"short_answers": ["1952"]}],
    "answer": "The queen, since 1952.",
    "docs": [{"title": f"t{n}", "text": f"text {n}"} for n in range(40)],
}
QAMPARI = ASQA | {"answers": [["Lima", "the city of Lima"], ["Oslo"], ["Cairo"]], "qa_pairs": None}


def test_questions_with_citations_show_as_many_documents_as_their_name_says(tmp_path, data, tokenizer):
    (data / "alce").mkdir()
    for name, row in (("asqa", ASQA), ("qampari", QAMPARI)):
        (data / "alce" / f"{name}.json").write_text(json.dumps([row, row | {"question": "And where?"}]))
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "asqa.json").write_text(json.dumps({"instruction": "x", "demos": [ASQA | {"question": "Before?"}]}))
    changes = {
        "datasets": "alce_asqa_5,alce_qampari_nocite_30",
        "input_max_length": "6000,6000",
        "generation_max_length": "30,30",
        "test_files": "data/alce/asqa.json,data/alce/qampari.json",
        "demo_files": "prompts/asqa.json,",
    }
    cited, listed = read_helmet_config(_config(tmp_path, **changes))
    asking = Asking(tokenizer)
    first = helmet_instances(asking, cited, data)[0]
    prompt = prompt_of(first)
    assert "[5] (Title: t4)" in prompt and prompt.count("[6] (Title: t5)") == 1  # the demonstration has all of its own
    assert "Before?" in prompt and "cite the documents" in first.instruction
    other = helmet_instances(asking, listed, data)[0]
    assert "[30] (Title" in other.context and "[31]" not in other.context and "cite" not in other.instruction
    found = judge(first, "Answer: Elizabeth rules [1][2].\nSince 1952.")
    assert found["figures"] == {"str_em": 0.5, "citations": 2.0}  # the first line counts, as in ALCE
    found = judge(other, "the city of Lima, Paris, Oslo.")
    assert found["figures"]["rec_top5"] == found["figures"]["recall"] == pytest.approx(2 / 3)
    assert found["figures"]["precision"] == pytest.approx(2 / 3) and found["metric"] == "rec_top5"
    (data / "alce" / "asqa.json").write_text(json.dumps([{"question": "q", "docs": []}]))
    with pytest.raises(UserError, match="question 0: it is not of the kind alce_asqa"):
        helmet_instances(asking, cited, data)


@pytest.mark.parametrize(
    ("name", "answer", "output", "metric", "score"),
    [
        ("infbench_qa_eng_300", ["the red fox"], "Answer: red fox", "rougeL", 0.8),
        ("narrativeqa_300", ["a fox"], "the fox", "rougeL", 0.5),
        ("infbench_choice_eng_300", ["B", "B. Paris"], "I think B. Paris is right", "exact_match", 1.0),
        ("infbench_choice_eng_300", ["B", "B. Paris"], "Answer: B", "exact_match", 1.0),
        ("infbench_choice_eng_300", ["B", "B. Paris"], "Because", "exact_match", 0.0),
        ("infbench_sum_eng_300", ["the fox jumps"], "the fox jumps", "rougeL", 1.0),
    ],
)
def test_exports_are_judged_as_helmet_judges_them(tmp_path, data, tokenizer, name, answer, output, metric, score):
    (data / "one.jsonl").write_text(json.dumps({"context": TEXT, "question": "Who?", "answer": answer}) + "\n")
    changes = {"datasets": name, "input_max_length": 512, "generation_max_length": 20}
    changes |= {"test_files": "data/one.jsonl", "demo_files": ""}
    (instance,) = helmet_instances(Asking(tokenizer), read_helmet_config(_config(tmp_path, **changes))[0], data)
    found = judge(instance, output)
    assert (found["metric"], found["score"]) == (metric, pytest.approx(score))


def test_what_a_judge_says_enters_the_suites(tmp_path, data, tokenizer, lmlab):
    shape = ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=1, d_model=16, num_heads=2, max_seq_len=1024)
    save_pretrained(Transformer(shape).initialize(0), tmp_path / "model")
    tokenizer.save(tmp_path / "model", 1024)
    row = {"context": TEXT, "question": "Who jumps?", "answer": ["the fox"]}
    (data / "one.jsonl").write_text(json.dumps(row) + "\n")
    changes = {"datasets": "narrativeqa_300,infbench_sum_eng_300", "input_max_length": 512}
    changes |= {"generation_max_length": 8, "test_files": "data/one.jsonl", "demo_files": ""}
    how = ("--data", data, "--config", _config(tmp_path, **changes), "--out", tmp_path / "out", "--precision", "fp32")
    assert lmlab("long", "helmet", tmp_path / "model", *how).code == 0
    before = json.loads((tmp_path / "out" / "helmet.json").read_text())
    assert before["tasks"] == {"helmet_narrativeqa__512": None, "helmet_infbench_sum_eng__512": None}
    assert before["suites"] == {}
    for name, task in (("narrativeqa_300", "answer"), ("infbench_sum_eng_300", "summ")):
        judged = lmlab("long", "judge", tmp_path / "out" / f"{name}-512", "--task", task, "--judge", "coverage")
        assert judged.code == 0, judged.err
    rows = (tmp_path / "out" / "narrativeqa_300-512" / "rows.jsonl").read_bytes()
    assert lmlab("long", "helmet", tmp_path / "model", *how).code == 0
    assert (tmp_path / "out" / "narrativeqa_300-512" / "rows.jsonl").read_bytes() == rows
    after = json.loads((tmp_path / "out" / "helmet.json").read_text())
    assert all(0 <= value <= 100 for value in after["tasks"].values())
    assert set(after["suites"]) == {"helmet_longqa__512", "helmet_summ__512", "helmet_all__512"}


JUDGE = [
    {"match": "Assess only whether its text can be read", "text": "FLUENCY:\nfine\nGRADE: 1/1"},
    {"match": "Assess an answer by the expected answers", "text": "CORRECTNESS:\nnearly\nGRADE: 2/3"},
    {"text": "VERDICT: met"},
]


def test_what_a_judge_says_is_written_as_helmets_own_judge_writes_it(tmp_path, data, tokenizer, lmlab):
    shape = ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=1, d_model=16, num_heads=2, max_seq_len=1024)
    save_pretrained(Transformer(shape).initialize(0), tmp_path / "model")
    tokenizer.save(tmp_path / "model", 1024)
    row = {"context": TEXT, "question": "Who jumps?", "answer": ["the fox", "a fox"]}
    (data / "one.jsonl").write_text(json.dumps(row) + "\n")
    changes = {"datasets": "narrativeqa_300,infbench_sum_eng_300", "input_max_length": 512}
    changes |= {"generation_max_length": 8, "test_files": "data/one.jsonl", "demo_files": ""}
    out = tmp_path / "out"
    how = ("--data", data, "--config", _config(tmp_path, **changes), "--out", out, "--precision", "fp32")
    assert lmlab("long", "helmet", tmp_path / "model", *how).code == 0
    assert not list(out.glob("*gpt4eval*"))
    (plain,) = out.glob("narrativeqa_300*_42.json")
    (answered,) = json.loads(plain.read_text())["data"]
    assert (answered["question"], answered["answer"]) == ("Who jumps?", ["the fox", "a fox"])  # its judge reads these
    script = tmp_path / "script.jsonl"
    script.write_text("".join(json.dumps(line) + "\n" for line in JUDGE))
    for name, task in (("narrativeqa_300", "answer"), ("infbench_sum_eng_300", "summ")):
        judge = ("--task", task, "--judge", "mock:script", "--replies", script)
        judged = lmlab("long", "judge", out / f"{name}-512", *judge)
        assert judged.code == 0, judged.err
    assert lmlab("long", "helmet", tmp_path / "model", *how).code == 0
    (answers,) = out.glob("narrativeqa_300*_42-gpt4eval_o.json")
    found = json.loads(answers.read_text())
    means = json.loads((out / "helmet.json").read_text())["tasks"]
    # HELMET's collector multiplies these by 100/3, and by 100
    assert found["averaged_metrics"]["gpt-4-score"] * 100 / 3 == pytest.approx(means["helmet_narrativeqa__512"])
    assert found["args"]["judge"].startswith("mock:script") and found["averaged_metrics"]["rougeL_f1"] is not None
    grades = found["data"][0]["gpt-4-scores"]
    assert grades in ({"fluency": 1.0, "correctness": 2.0}, {"fluency": 0.0, "correctness": 0.0})  # empty: nothing
    (summaries,) = out.glob("infbench_sum*-gpt4eval_o.json")
    summed = json.loads(summaries.read_text())["averaged_metrics"]
    assert {"gpt-4-recall", "gpt-4-precision", "gpt-4-fluency", "gpt-4-f1"} <= set(summed)
    assert summed["gpt-4-f1"] * 100 == pytest.approx(means["helmet_infbench_sum_eng__512"])
    assert read_helmet_results(out).tasks == pytest.approx(means)
    # a judgment that is taken back leaves no file behind that still tells it
    (out / "infbench_sum_eng_300-512" / "judged.json").unlink()
    assert lmlab("long", "helmet", tmp_path / "model", *how).code == 0
    assert not summaries.exists() and read_helmet_results(out).tasks["helmet_infbench_sum_eng__512"] is None
    # what HELMET's own judge has written stays, and counts where ours has not spoken
    theirs = {"args": {"datasets": "narrativeqa_300", "input_max_length": 512, "model_name_or_path": "m"}}
    theirs |= {"data": [], "averaged_metrics": {"gpt-4-score": 1.5}}
    answers.write_text(json.dumps(theirs))
    assert lmlab("long", "helmet", tmp_path / "model", *how).code == 0
    assert json.loads(answers.read_text()) == theirs
    (out / "narrativeqa_300-512" / "judged.json").unlink()
    assert lmlab("long", "helmet", tmp_path / "model", *how).code == 0
    assert json.loads((out / "helmet.json").read_text())["tasks"]["helmet_narrativeqa__512"] == 50
    for hostile in ({"args": []}, {"args": None}, {"args": theirs["args"]}, {**theirs, "averaged_metrics": [1]}):
        answers.write_text(json.dumps(hostile))
        refused = lmlab("long", "helmet", tmp_path / "model", *how)
        assert refused.code == 2 and "is no result of HELMET" in refused.err, refused.err
