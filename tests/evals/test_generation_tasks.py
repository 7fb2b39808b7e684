"""Tasks in which a model writes: comparisons of texts, extraction, and a model that really writes."""

from __future__ import annotations

import pytest

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.evals import GenerationTask, read_task
from lmlab.evals.generation import (
    Prompt,
    Writing,
    answer_prompts,
    answer_row,
    best_agreement,
    exact_match,
    extract_answer,
    read_prompts,
    token_f1,
)
from lmlab.evals.run import task_figures
from lmlab.models import GenerationConfig, ModelConfig, Transformer, generate


def test_exact_match_ignores_case_articles_punctuation_and_spaces():
    assert exact_match("The  Eiffel tower.", "eiffel Tower") == 1
    assert exact_match("1,000", "1000") == 1
    assert exact_match("tower", "eiffel tower") == 0
    assert exact_match("", "") == 0


def test_f1_counts_common_words():
    assert token_f1("the red big dog", "a big red cat") == pytest.approx(2 * 2 / (3 + 3))
    assert token_f1("dog dog", "dog") == pytest.approx(2 / 3)
    assert token_f1("cat", "dog") == 0


def test_the_best_reference_counts():
    assert best_agreement("Paris", ["London", "paris"], "exact_match") == 1


def test_rouge_is_that_of_the_library():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=True)
    answer, reference = "the cats were sitting on a mat", "a cat sits on the mat"
    assert best_agreement(answer, [reference], "rougeL") == pytest.approx(
        scorer.score(reference, answer)["rougeL"].fmeasure
    )


@pytest.mark.parametrize(
    ("how", "answer"),
    [
        ({}, "7 and 8, so the answer is 15."),
        ({"extract": r"\d+"}, "7"),
        ({"extract": r"\d+", "take": "last"}, "15"),
        ({"extract": r"answer is (\d+)"}, "15"),
        ({"extract": "z+"}, ""),
    ],
)
def test_an_expression_finds_the_answer_in_a_text(how, answer):
    assert extract_answer(" 7 and 8, so the answer is 15.", Writing(**how)) == answer


@pytest.fixture(scope="module")
def writer():
    tokenizer = Tokenizer.train(["the cat sat on the mat. " * 30], 280)
    return (
        Transformer(ModelConfig(vocab_size=280, num_layers=1, d_model=32, num_heads=2, max_seq_len=40)).initialize(3),
        tokenizer,
    )


def test_a_model_writes_greedily_and_its_rows_are_measured(writer):
    model, tokenizer = writer
    (expected,) = generate(
        model,
        [tokenizer.encode_prompt("the cat")],
        GenerationConfig(max_new_tokens=5, temperature=0, eos_ids=(0,)),
        decode=tokenizer.decode,
    )
    prompts = [
        Prompt(id="a", prompt="the cat", references=["no", expected[0].text.strip() or "?"], max_new_tokens=5),
        Prompt(id="b", prompt="sat", references=["zzz"], max_new_tokens=3),
    ]
    rows = {row["id"]: row for row in answer_prompts(model, tokenizer, prompts, Writing())}
    assert rows["a"]["text"] == expected[0].text
    task = GenerationTask(name="t", requests="none", metric="f1")
    assert task_figures(task, list(rows.values()))["f1"].count == 2


def test_a_prompt_without_room_for_the_answer_is_named(writer):
    model, tokenizer = writer
    prompt = Prompt(id="too long", prompt="the cat sat on " * 20, references=["x"], max_new_tokens=10)
    with pytest.raises(UserError, match="Prompt 'too long' has"):
        list(answer_prompts(model, tokenizer, [prompt], Writing()))
    (row,) = answer_prompts(model, tokenizer, [prompt], Writing(), "truncate")
    assert row["tokens_cut"] > 0
    (row,) = answer_prompts(model, tokenizer, [prompt], Writing(), "skip")
    assert row["skipped"]


def test_a_users_task_is_a_yaml_file_beside_its_prompts(tmp_path):
    (tmp_path / "sums.jsonl").write_text('{"id": "1", "prompt": "1+1=", "references": ["2"]}\n')
    (tmp_path / "sums.yaml").write_text(
        "name: sums\nkind: generation\nrequests: sums.jsonl\nextract: '\\d+'\nmax_new_tokens: 4\n"
    )
    task = read_task(tmp_path / "sums.yaml")
    assert [prompt.prompt for prompt in task.prompts()] == ["1+1="]
    (tmp_path / "sums.jsonl").unlink()
    with pytest.raises(UserError, match=r"the requests '.*sums\.jsonl' do not exist"):
        read_task(tmp_path / "sums.yaml")


def test_a_broken_file_of_prompts_is_told_with_its_line(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "1", "prompt": "a", "references": ["2"]}\n{"id": "2", "prompt": "", "references": ["2"]}\n')
    with pytest.raises(UserError, match="line 2"):
        read_prompts(path)


def test_references_and_answer_stand_in_the_row():
    row = answer_row(Prompt(id="q", prompt="p", references=["4"]), "It is 4.", Writing(extract=r"\d"))
    assert (row["answer"], row["references"], row["text"]) == ("4", ["4"], "It is 4.")


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("A", "a", 1),
        ("A", "B", 0),
        ("3.5", "35", 0),
        ("-5", "5", 0),
        ("$1,000", "1000", 1),
        ("18.", "18", 1),
        ("a", "the", 0),
    ],
)
def test_letters_and_numbers_are_compared_as_they_are(answer, reference, same):
    assert exact_match(answer, reference) == same


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ("kind: generation\nextract: '(['", "extract is not a regular expression"),
        ("kind: generation\nmetric: accuracy", "does not go with kind 'generation'"),
        ("metric: f1", "does not go with kind 'ranked'"),
        ("extract: x", "extract belongs to tasks of kind 'generation'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path, changes, said):
    (tmp_path / "t.jsonl").write_text("")
    (tmp_path / "t.yaml").write_text(f"name: t\nrequests: t.jsonl\n{changes}\n")
    with pytest.raises(UserError, match=said):
        read_task(tmp_path / "t.yaml")
