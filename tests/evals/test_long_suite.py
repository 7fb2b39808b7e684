"""The long-context suite: instances of an exact length, scores that `transformers` gives too, and figures by hand."""

from __future__ import annotations

import json
import math
import re
import shutil
from itertools import pairwise, permutations

import pytest
import torch
import transformers

from lmlab.data import ChatConfig, Tokenizer, chat_tokenizer
from lmlab.endpoints import Endpoint
from lmlab.errors import UserError
from lmlab.evals import Evaluator, ModelScorer
from lmlab.evals.long import (
    TOLERANCE,
    Asking,
    EndpointWriter,
    LongSettings,
    build_instances,
    by_context,
    check_comparable,
    effective_length,
    header_of,
    judge,
    measure_written,
    measurer,
    prompt_of,
    read_instances,
    read_results,
    read_suite_rows,
    run_suite,
    summarize,
    write_instances,
)
from lmlab.evals.long.metrics import (
    chance_of_ranking,
    citations,
    edit_similarity,
    ndcg,
    parse_ranking,
    right_before_error,
    row_f1,
)
from lmlab.evals.long.tasks.facts import FACTS
from lmlab.evals.long.texts import Paper, passages
from lmlab.evals.tasks import olmes
from lmlab.methods.prolong import perplexity
from lmlab.models import ModelConfig, Transformer, from_pretrained, save_pretrained

pytestmark = pytest.mark.skipif(olmes.version() is None, reason=f"the package {olmes.PACKAGE} is not installed")

ALL = ["all", "json_kv.uuid", "json_kv.word", "json_kv.absent", "niah.lit", "niah.nolit", "niah_multikey.all"]
ALL += ["icl.sst2", "icl.natural_label", "icl.permuted", "proc.path"]
WRITTEN = ["json_kv", "json_kv.absent", "rag", "niah_multivalue", "icl.sst2", "longqa", "repo_def", "rerank"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train((passage.text for passage in passages()[:200]), 1200)


@pytest.fixture(scope="module")
def model(tokenizer):
    config = ModelConfig(
        vocab_size=1200, num_layers=2, d_model=48, num_heads=4, num_kv_heads=2, max_seq_len=1024, init_std=0.2
    )
    return Transformer(config).initialize(3).eval()


@pytest.fixture(scope="module")
def directory(model, tokenizer, tmp_path_factory):
    place = tmp_path_factory.mktemp("tiny")
    save_pretrained(model, place, tokens={"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id})
    tokenizer.save(place, 1024)
    return place


@pytest.fixture(scope="module")
def asking(tokenizer):
    return Asking(tokenizer)


@pytest.fixture(scope="module")
def everything(asking):
    settings = LongSettings(tasks=ALL, lengths=[768], contexts=1)
    return list(build_instances(asking, settings))


@pytest.fixture(scope="module")
def file(asking, tmp_path_factory):
    settings = LongSettings(tasks=WRITTEN, lengths=[640], contexts=1, questions=3)
    path = tmp_path_factory.mktemp("instances") / "instances.jsonl"
    write_instances(path, header_of(asking, settings), build_instances(asking, settings))
    return path


def _evaluator(model, tokenizer, share=True):
    return Evaluator(ModelScorer(model, "fp32", share=share), tokenizer, model)


def test_every_task_is_built_at_its_length(everything, asking):
    found = {each.name for each in everything}
    assert {"json_kv.int", "niah", "rag", "rerank", "icl.mmlu_subject", "longqa", "summ", "proc.path"} <= found
    for each in everything:
        tokens = len(asking.tokenizer.encode_prompt(prompt_of(each)))
        assert tokens == each.prompt_tokens <= each.length - each.budget
    for group in by_context(everything):
        longest, room = max(each.prompt_tokens for each in group), group[0].length - group[0].budget
        assert group[0].short or longest >= (1 - TOLERANCE) * room, group[0].id
        assert len({each.context for each in group}) == 1
    assert sum(each.short for each in everything) < 0.1 * len(everything)


def test_answers_stand_in_their_contexts(everything):
    for each in everything:
        if each.task in ("json_kv", "niah_multikey", "rag") and each.variant != "absent":
            assert any(answer in each.context for answer in each.answer), each.id
        if each.name == "json_kv.absent":
            assert each.question.removeprefix("Key: ") not in each.context
        if each.task == "repo_def":
            assert f"{each.prefix}{each.answer[0]})" in each.context
            assert each.context.count(each.prefix) == 1
        if each.task == "rerank":
            assert sorted(each.meta["labels"].values())[-1] == 2 and set(each.options) == set(each.meta["labels"])
            assert all(f"[ID: {name}]" in each.context for name in each.options)
        if each.name == "proc.path":
            steps = [each.question.split()[2], *each.answer[0].split("\n")]
            assert all(f"From {a} the line goes to {b}." in each.context for a, b in pairwise(steps))
    depths = [each.depth for each in everything if each.name == "json_kv.int"]
    assert depths == sorted(depths) and depths[0] < 0.2 and depths[-1] > 0.8
    labels = {each.answer[0] for each in everything if each.name == "icl.mmlu_subject"}
    assert len(labels) == 6  # eight questions, balanced over six classes


def test_twin_needles_tell_one_fact_in_other_words(everything):
    (literal,), (implied,) = ([each for each in everything if each.name == name] for name in ("niah.lit", "niah.nolit"))
    assert literal.answer == implied.answer and literal.question == implied.question
    stop = set(
        ["who", "has", "been", "to", "a", "an", "the", "is", "about", "name", "cannot", "in", "at", "by", "of", "next"]
    )
    for fact in FACTS:
        asked = {word.strip("?.").lower()[:4] for word in fact.question.split()} - {word[:4] for word in stop}
        told = {word.strip("?.{}").lower()[:4] for word in fact.implied.split()}
        assert asked and not asked & told, fact
        assert {word.strip("?.").lower() for word in fact.question.split()[1:]} <= {
            word.strip("?.").lower() for word in fact.literal.split()
        }


def test_the_same_seed_gives_the_same_bytes(asking, tmp_path):
    def write(name, **changes):
        settings = LongSettings(tasks=["json_kv", "rag", "icl"], lengths=[768], contexts=1, **changes)
        write_instances(tmp_path / name, header_of(asking, settings), build_instances(asking, settings))
        return (tmp_path / name).read_bytes()

    assert write("a") == write("b")
    assert write("a").splitlines()[1:] != write("c", seed=1).splitlines()[1:]


def test_files_of_another_tokenizer_or_damage_are_refused(file, tmp_path):
    with pytest.raises(UserError, match="lengths of another tokenizer"):
        read_instances(file, "another")
    lines = file.read_text().splitlines()
    (tmp_path / "cut.jsonl").write_text("\n".join([lines[0], lines[1][:200]]))
    with pytest.raises(UserError, match=r"cut\.jsonl', line 2"):
        read_instances(tmp_path / "cut.jsonl")
    header = json.loads(lines[0]) | {"longeval": 99}
    (tmp_path / "new.jsonl").write_text(json.dumps(header) + "\n" + lines[1])
    with pytest.raises(UserError, match="version 99"):
        read_instances(tmp_path / "new.jsonl")


def test_written_answers_are_those_of_a_plain_loop_of_transformers(file, model, tokenizer, directory, asking):
    peer = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    instances = read_instances(file).instances
    measure = measurer(_evaluator(model, tokenizer), asking, "generate", controls=False)
    ours = {row["id"]: row for group in by_context(instances) for row in measure(group)}
    assert len(ours) == len(instances) > 12
    for line in file.read_text().splitlines()[1:]:
        row = json.loads(line)
        shown = [row["instruction"], row["context"], row["question"]]
        prompt = "\n\n".join(part for part in shown if part) + (f"\n{row['prefix']}" if row["prefix"] else "")
        ids = torch.tensor([tokenizer.encode_prompt(prompt)])
        with torch.no_grad():
            out = peer.generate(
                ids, max_new_tokens=row["budget"], do_sample=False, eos_token_id=tokenizer.eos_id, pad_token_id=0
            )
        text = tokenizer.decode([token for token in out[0, ids.shape[1] :].tolist() if token != tokenizer.eos_id])
        for stop in row["stop"]:
            text = text.split(stop)[0]
        assert ours[row["id"]]["output"] == text, row["id"]


def test_scores_do_not_depend_on_what_is_shared(file, model, tokenizer, asking):
    instances = read_instances(file).instances
    for mode in ("generate", "forced"):
        found = []
        for share in (True, False):
            measure = measurer(_evaluator(model, tokenizer, share), asking, mode, share=share)
            found.append([row for group in by_context(instances) for row in measure(group)])
        for a, b in zip(*found, strict=True):
            assert a["id"] == b["id"] and a["score"] == b["score"] and a.get("output") == b.get("output")
            if mode == "forced":
                assert a["nll"] == pytest.approx(b["nll"], abs=1e-4)


@pytest.mark.parametrize("tokens", [1, 700, 5000])
def test_scores_do_not_depend_on_the_batch(file, model, tokenizer, asking, tokens):
    instances = [each for each in read_instances(file).instances if each.task in ("json_kv", "icl")]
    usual = measurer(_evaluator(model, tokenizer), asking, "forced")
    scorer = ModelScorer(model, "fp32", batch_tokens=tokens)
    other = measurer(Evaluator(scorer, tokenizer, model), asking, "forced")
    for group in by_context(instances):
        for a, b in zip(usual(group), other(group), strict=True):
            assert (a["id"], a["score"], a.get("choice")) == (b["id"], b["score"], b.get("choice"))
            assert a["nll"] == pytest.approx(b["nll"], abs=1e-4)


def test_options_have_the_tokens_that_they_have_behind_the_whole_prompt(everything, asking):
    asked = [each for each in everything if each.options]
    assert {"rerank", "longqa", "icl"} <= {each.task for each in asked}
    for each in asked:
        prompt = asking.ids(each)
        alone = {option: asking.answer_ids(prompt, each, option) for option in each.options}
        assert asking.option_ids(prompt, each) == alone, each.id


def test_forced_scores_are_the_probabilities_of_the_right_answer(file, model, tokenizer, asking):
    instances = [each for each in read_instances(file).instances if each.task in ("json_kv", "rag")]
    measure = measurer(_evaluator(model, tokenizer), asking, "forced")
    rows = {row["id"]: row for group in by_context(instances) for row in measure(group)}
    for each in instances:
        prompt = asking.ids(each)
        answer = asking.answer_ids(prompt, each, each.answer[0])
        assert tokenizer.decode(answer).strip() == each.answer[0]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits_BTV[0, len(prompt) - 1 : -1]
        labels = torch.tensor(answer)
        nll = torch.nn.functional.cross_entropy(logits.double(), labels)
        assert rows[each.id]["nll"] == pytest.approx(float(nll), abs=1e-4)
        assert rows[each.id]["token_accuracy"] == float((logits.argmax(-1) == labels).double().mean())
        assert ("closed" in rows[each.id]) == (each.task == "rag")


def test_a_killed_measurement_goes_on_and_equals_a_whole_one(file, model, tokenizer, asking, tmp_path):
    found = read_instances(file)
    measure = measurer(_evaluator(model, tokenizer), asking, "forced", controls=False)
    about = {"model": "tiny", "mode": "forced", "max_seq_len": 1024}
    whole = run_suite(found, measure, tmp_path / "whole", **about)
    done: list[str] = []

    def dies(group):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(group[0].id)
        return measure(group)

    with pytest.raises(KeyboardInterrupt):
        run_suite(found, dies, tmp_path / "cut", **about)
    done.clear()
    again = run_suite(found, lambda group: (done.append(group[0].id), measure(group))[1], tmp_path / "cut", **about)
    assert len(done) == len(list(by_context(found.instances))) - 3
    assert again["tasks"] == whole["tasks"] == read_results(tmp_path / "whole")["tasks"]
    with pytest.raises(UserError, match="holds results with another mode"):
        run_suite(found, measure, tmp_path / "cut", **about | {"mode": "generate"})
    with pytest.raises(UserError, match="the model's window is 300"):
        run_suite(found, measure, tmp_path / "short", **about | {"max_seq_len": 300})
    with pytest.raises(UserError, match="differ in their mode"):
        check_comparable([whole, whole | {"mode": "generate"}])


def test_citations_are_read_however_long_their_numbers():
    assert citations("So it is [1][2]. And [3, 12; 4].") == [1, 2, 3, 12, 4]
    found = citations(f"[{'1' * 5000}] [2]")
    assert len(found) == 2 and found[0] > 10**9 and found[1] == 2


def test_rankings_are_read_and_scored_as_published():
    assert parse_ranking("Ranking: [ID: 12] > [ID: 7] > 12 > 3") == ["12", "7", "3"]
    assert parse_ranking("5\n8 > 9") == ["8", "9"]
    assert parse_ranking("the second passage") == []
    labels = {"a": 2, "b": 1, "c": 0, "d": 0}
    best = 2 / math.log2(2) + 1 / math.log2(3)
    assert ndcg(["a", "b", "c", "d"], labels) == 1
    assert ndcg(["c", "b", "a"], labels) == pytest.approx((1 / math.log2(3) + 2 / math.log2(4)) / best)
    every = [ndcg(order, labels) for order in permutations(labels)]
    assert chance_of_ranking(labels) == pytest.approx(sum(every) / len(every))
    assert chance_of_ranking({"a": 0}) == 0


def test_rows_edits_and_errors_are_counted():
    assert row_f1("a\tb\nc\td\nx\n", "a\tb\nc\td\ne\tf") == pytest.approx(2 * 2 / 6)
    assert right_before_error("a\nb\nx", "a\nb\nc\nd") == 0.5
    assert edit_similarity("kitten", "sitting") == pytest.approx(1 - 3 / 7)


@pytest.mark.parametrize(
    ("name", "output", "expected"),
    [
        ("json_kv.int", '{gold}"', {"score": 1.0, "parsed": True}),
        ("json_kv.int", "0000", {"score": 0.0}),
        ("rag", "I'm sorry, the answer is not mentioned.", {"score": 0.0, "refused": True}),
        ("icl.mmlu_subject", "nonsense", {"score": 0.0, "parsed": False}),
        ("longqa", "Maybe.", {"score": 0.0, "parsed": False}),
        ("rerank", "the first document", {"score": 0.0, "parsed": False}),
        ("repo_def", "{gold}):\n", {"score": 1.0}),
        ("proc.path", "{gold}\n", {"score": 1.0}),
    ],
)
def test_written_answers_are_judged(everything, name, output, expected):
    instance = next(each for each in everything if each.name == name)
    found = judge(instance, output.replace("{gold}", instance.answer[0]))
    assert {key: found[key] for key in expected} == expected


def test_figures_are_means_with_intervals_over_contexts():
    def row(name, length, context, score, **more):
        common = {"metric": "m", "figures": {"m": score}, "n_items": 3, "chance": 0.1, "short": False, "depth": 0.5}
        return {"name": name, "length": length, "context": f"{name}{context}", "score": score, **common, **more}

    rows = [row("json_kv.int", 512, n % 4, float(n % 4 > 0)) for n in range(16)]
    rows += [row("json_kv.int", 1024, n % 4, float(n % 4 > 1)) for n in range(16)]
    rows += [row("niah", 512, n, 1.0) for n in range(4)] + [row("rag", 512, n, 0.25) for n in range(4)]
    found = summarize(rows)
    cell = found["tasks"]["json_kv.int"]["512"]
    assert (cell["score"], cell["n"], cell["contexts"]) == (0.75, 16, 4)
    assert cell["low"] < 0.75 < cell["high"] <= 1 and cell["high"] - cell["low"] > 0.4  # contexts are the units
    assert found["categories"] == {"Recall": {"512": 0.75, "1024": 0.5}, "RAG": {"512": 0.25}}
    assert found["average"]["512"] == 0.5 and found["average"]["1024"] == 0.5  # needles are in no average
    assert found["effective_length"]["json_kv.int"] == {"length": 512, "base": 0.75}
    assert effective_length({"512": {"score": 0.3}, "1024": {"score": 0.3}})["length"] is None
    alone = summarize([row("json_kv.int", 512, 0, float(n > 0)) for n in range(4)])["tasks"]["json_kv.int"]["512"]
    assert (alone["score"], alone["low"], alone["high"]) == (0.75, None, None)  # of one context there is no interval
    yes_no = [row("longqa", 512, n, float(n > 0), answer="yes" if n < 3 else "no") for n in range(4)]
    assert summarize(yes_no)["tasks"]["longqa"]["512"]["score"] == pytest.approx((2 / 3 + 1) / 2)


def test_the_commands_build_measure_and_show(directory, tmp_path, lmlab):
    kinds = ("--task", "json_kv", "--task", "niah", "--task", "rag", "--length", "512", "--length", "640")
    small = (*kinds, "--contexts", "2", "--questions", "3")
    built = lmlab("long", "build", directory, *small, "--out", tmp_path / "i.jsonl")
    assert built.code == 0 and "json_kv.int" in built.out
    how = ("--instances", tmp_path / "i.jsonl", "--mode", "forced")
    for name in ("base", "tuned"):
        found = lmlab("long", "eval", directory, *how, "--out", tmp_path / name)
        assert found.code == 0, found.err
    assert lmlab("long", "report", tmp_path / "base", tmp_path / "tuned", "--out", tmp_path / "both.html").code == 0
    page = (tmp_path / "both.html").read_text()
    for name in ("base", "tuned"):  # two runs of one model are told apart
        assert f"{directory} ({tmp_path / name}, fp32" in page
    assert "Where in the context" in page and "gold_only" in page and "Effective length" in page
    # the same place with other weights is another model, and without controls rows are others
    other = from_pretrained(directory)
    with torch.no_grad():
        other.embedding.weight[-1, -1] += 1  # also where one weight differs, the last of its table
    changed = tmp_path / "model"
    shutil.copytree(directory, changed)
    assert lmlab("long", "eval", changed, *how, "--out", tmp_path / "again").code == 0
    before = (tmp_path / "again" / "rows.jsonl").read_bytes()
    assert lmlab("long", "eval", changed, *how, "--out", tmp_path / "again").code == 0
    refused = lmlab("long", "eval", changed, *how, "--no-controls", "--out", tmp_path / "again")
    assert refused.code == 2 and "holds results with another controls" in refused.err
    save_pretrained(other, changed)
    refused = lmlab("long", "eval", changed, *how, "--out", tmp_path / "again")
    assert refused.code == 2 and "holds results with another weights" in refused.err
    assert (tmp_path / "again" / "rows.jsonl").read_bytes() == before
    refused = lmlab("long", "eval", directory, "--mode", "guess", "--out", tmp_path / "no")
    assert refused.code == 2 and "mode: input should be 'generate' or 'forced'" in refused.err
    unknown = lmlab("long", "build", directory, "--task", "jsonkv", "--out", tmp_path / "no.jsonl")
    assert unknown.code == 2 and "Did you mean 'json_kv'?" in unknown.err


def test_settings_of_other_results_leave_their_instances_alone(directory, tmp_path, lmlab):
    how = ("long", "eval", directory, "--task", "json_kv", "--contexts", "1", "--mode", "forced", "--out", tmp_path)
    assert lmlab(*how, "--length", "512").code == 0
    before = (tmp_path / "instances.jsonl").read_bytes()
    refused = lmlab(*how, "--length", "640")
    assert refused.code == 2 and "holds results on instances of other settings" in refused.err
    assert (tmp_path / "instances.jsonl").read_bytes() == before
    assert lmlab(*how, "--length", "512").code == 0


def test_long_perplexity_keeps_its_key_tokens(directory, tmp_path, lmlab):
    how = ("--keys", tmp_path / "keys.json", "--length", "300", "--context", "64", "--slide", "32", "--texts", "2")
    first = lmlab("long", "ppl", directory, *how)
    assert first.code == 0 and "key tokens of 470" in first.out  # 2 texts of 300 tokens, less 1 and the short context
    assert lmlab("long", "ppl", directory, *how).out == first.out
    known = json.loads((tmp_path / "keys.json").read_text())
    (tmp_path / "keys.json").write_text(json.dumps(known | {"tokenizer": "another"}))
    refused = lmlab("long", "ppl", directory, *how)
    assert refused.code == 2 and "of another tokenizer" in refused.err
    for change in ({"texts": "other"}, {"keys": [[0], [5]]}):
        (tmp_path / "keys.json").write_text(json.dumps(known | change))
        refused = lmlab("long", "ppl", directory, *how)
        assert refused.code == 2 and re.search("of other texts|not those of these texts", refused.err)
    # nothing is kept of what cannot be measured
    refused = lmlab("long", "ppl", directory, *how, "--keys", tmp_path / "no.json", "--context", "299")
    assert refused.code == 2 and "leaves none" in refused.err and not (tmp_path / "no.json").exists()


def test_long_perplexity_takes_the_same_texts_again_where_some_are_short(directory, tmp_path, lmlab, monkeypatch):
    def paper(words):
        return Paper(f"of {words}", "abstract", "word " * words, ())

    # the longest by words is the shortest in tokens
    monkeypatch.setattr(perplexity, "papers", lambda: (paper(90), Paper("b", "a", "supercalifragilistic " * 80, ())))
    how = ("--keys", tmp_path / "k.json", "--length", "200", "--context", "64", "--slide", "32", "--texts", "1")
    first = lmlab("long", "ppl", directory, *how)
    assert first.code == 0, first.err
    assert lmlab("long", "ppl", directory, *how).out == first.out
    monkeypatch.setattr(perplexity, "papers", lambda: (paper(9),))
    refused = lmlab("long", "ppl", directory, *how, "--keys", tmp_path / "none.json")
    assert refused.code == 2 and "No text has 200 tokens" in refused.err
    planned = lmlab("long", "rope", directory, "--to", "8192")
    assert planned.code == 0 and "160000" in planned.out  # 2 t theta of 10,000 and t of 8


def test_what_an_endpoint_writes_is_measured(file, asking, tmp_path):
    instances = [each for each in read_instances(file).instances if each.task == "json_kv" and each.variant == "int"]
    script = [
        {"match": f'Key: "?{re.escape(each.question[6:-1])}', "text": f'{each.answer[0]}"'} for each in instances[1:]
    ]
    script.append({"text": "I am sorry, the key is not mentioned."})
    (tmp_path / "script.jsonl").write_text("".join(json.dumps(line) + "\n" for line in script))
    endpoint = Endpoint(model="scripted", backend="mock", replies=tmp_path / "script.jsonl")
    writer = EndpointWriter(endpoint, tmp_path / "replies.sqlite")
    rows = list(measure_written(writer, instances, controls=True))
    assert [row["score"] for row in rows] == [0.0] + [1.0] * (len(instances) - 1)
    assert [row["refused"] for row in rows] == [True] + [False] * (len(instances) - 1)


def test_a_chat_template_counts_and_must_be_the_same(directory, model, tokenizer, tmp_path):
    chatting = chat_tokenizer(tokenizer, ChatConfig(template="tulu"))
    asking = Asking(chatting, chat=True)
    settings = LongSettings(tasks=["json_kv"], lengths=[512], contexts=1, questions=2)
    write_instances(tmp_path / "chat.jsonl", header_of(asking, settings), build_instances(asking, settings))
    found = read_instances(tmp_path / "chat.jsonl")
    for each in found.instances:
        ids = asking.ids(each)
        text = chatting.decode(ids)
        assert len(ids) == each.prompt_tokens <= 512 - each.budget
        assert "<|user|>" in text and text.rstrip().endswith(each.prefix) and "<|assistant|>" in text
    measure = measurer(_evaluator(model, chatting), asking, "generate")
    with pytest.raises(UserError, match="Build them again with the same --chat"):
        run_suite(found, measure, tmp_path / "out", model="tiny", mode="generate", max_seq_len=1024)
    with pytest.raises(UserError, match="no chat template"):
        Asking(tokenizer, chat=True)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this build of PyTorch has no gloo")
def test_two_processes_find_what_one_does(file, directory, tmp_path, forkserver):
    command = ["long", "eval", directory, "--instances", file, "--mode", "forced", "--out"]
    for name, processes in (("one", 1), ("two", 2)):
        done = forkserver.run(*command, tmp_path / name, processes=processes, environment={"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (read_results(tmp_path / name) for name in ("one", "two"))
    assert one["tasks"].keys() == two["tasks"].keys()
    rows = [{row["id"]: row for row in read_suite_rows(tmp_path / name)} for name in ("one", "two")]
    assert rows[0].keys() == rows[1].keys()
    assert all(rows[0][each]["score"] == rows[1][each]["score"] for each in rows[0])
