"""What crafted results do to answers: results, readers, and what is told of both."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.methods.corpus_poisoning import AdmissionGate, DetectorContext, Passages
from lmlab.methods.corpus_poisoning.formats import TargetedQuestion
from lmlab.methods.corpus_poisoning.measure import answers as module
from lmlab.methods.corpus_poisoning.measure.answers import answer_rows, frequent_keywords, holds
from lmlab.models import GenerationConfig, ModelConfig, Transformer, generate, save_pretrained

GREEDY = GenerationConfig(max_new_tokens=24, temperature=0.0, eos_ids=(1,))
QUESTIONS = [
    TargetedQuestion("a", "what is the captain of the whale?", "storm", "moon", ("the captain moon",) * 3),
    TargetedQuestion("b", "who is the baker of bread?", "yeast", "king", ("the baker king", "king bread")),
]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    place = tmp_path_factory.mktemp("reader")
    tokenizer = Tokenizer.train(["what is the captain of the whale"] * 3, 270)
    config = ModelConfig(
        vocab_size=270, num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, d_ff=16, max_seq_len=2048
    )
    model = Transformer(config).initialize(0)
    save_pretrained(model, place)
    tokenizer.save(place)
    return place, model, tokenizer


def test_poison_is_found_and_read_and_counted_with_its_owner(target, reader, monkeypatch):
    prompts = []

    def ask(self, prompt):  # a reader that believes the last passage, or what most keywords say
        prompts.append(prompt)
        words = prompt.partition("Question:")[0]
        return "The Moon!" if "moon" in words else "a king." if "king" in words else "I don't know"

    monkeypatch.setattr(module._Reader, "_ask", ask)
    _, model, tokenizer = reader
    rows = {(row.reader, row.poison): row for row in answer_rows(target, QUESTIONS, model, tokenizer, k=5)}
    assert len(rows) == 6 and all(row.questions == 2 for row in rows.values())
    poisoned = rows["all results", "all"]
    assert poisoned.recall > 0.9 and poisoned.precision == pytest.approx(2.5 / 5) and poisoned.wanted == 1.0
    assert rows["all results", "none"].recall == 0 and rows["all results", "none"].f1 == 0
    assert rows["keywords of each", "all"].wanted == 1.0
    assert any("captain moon" in prompt for prompt in prompts) and sum("[2]" in prompt for prompt in prompts) == 4
    rows_of = Passages(target.data.corpus.texts, target.documents)
    context = DetectorContext(target.retriever.encoder, target.index, ["what is"], target.queries())
    gate = AdmissionGate.fit(["similarity"], context, rows_of, rows_of, 0.05)
    gate.threshold = type(gate.threshold)(-1.0, 0.05)  # refuses everything
    defended = answer_rows(target, QUESTIONS, model, tokenizer, 5, gate)[-1]
    assert defended.poison == "what the gate admits" and defended.recall == 0
    with pytest.raises(UserError, match="0 questions"):
        answer_rows(target, [], model, tokenizer)


def test_answers_hold_whole_words_and_keywords_are_those_of_enough_readers():
    assert holds("It is the Moon, surely.", "moon") and not holds("moonlight", "moon") and not holds("x", "the")
    assert holds("New York City", "the new york") and not holds("", "")
    told = ["King Arthur", "the king", "a king in a castle", "I don't know", "queen"]
    assert frequent_keywords(told) == ["king"]  # 3 of 4 that say something; 0.3 x 4 = 1.2
    assert frequent_keywords(["I don't know"] * 5) == [] and frequent_keywords(["moon"]) == ["moon"]


def test_results_apart_do_not_see_each_other_and_one_alone_is_read_as_ever(reader):
    _, model, tokenizer = reader
    found = module._Reader(model, tokenizer, ())
    texts = ["the captain moon", "a king of bread"]
    ids, owners = found._owned(found._prompt("what is the whale?", texts))
    read = [tokenizer.decode([id for id, owner in zip(ids, owners, strict=True) if owner == n]) for n in (0, 1)]
    assert [text.strip() for text in read] == ["[1] the captain moon", "[2] a king of bread"]
    assert "the whale?" in tokenizer.decode([id for id, owner in zip(ids, owners, strict=True) if owner == -1])
    seen = module.seen_apart(torch.tensor([-1, 0, 0, 1, 1, -1]))
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [1, 0, 0, 1, 1, 0],
        [1, 1, 1, 1, 1, 1],
    ]
    (completions,) = generate(model, [found._owned(found._prompt("who?", texts[:1]))[0]], GREEDY)
    assert found.apart("who?", texts[:1]) == tokenizer.decode(completions[0].ids).strip().partition("\n")[0]
    assert found.apart("who?", texts) is not None  # several are read too


@pytest.mark.parametrize(
    ("answers", "inserted", "certified"),
    [
        (["king"] * 5, 1, True),
        (["king"] * 5, 2, False),  # two strangers of five reach the bound of 1.5
        (["king"] * 10, 2, True),
        (["king"] * 9 + ["queen"], 2, False),  # with two more, queen is at 3
        (["king", "king", "I don't know", "I don't know"], 1, False),  # of few that say something, one is enough
        (["I don't know"] * 5, 1, False),
    ],
)
def test_a_certificate_is_what_trying_all_insertions_gives(answers, inserted, certified):
    assert module.is_certified(answers, inserted) is certified
    keywords, changed = frequent_keywords(answers), False
    words = ["king", "queen", "moon", "I don't know"]
    for count in range(1, inserted + 1):
        for kept in itertools.combinations(answers, len(answers) - count):
            for told in itertools.combinations_with_replacement([*words, "king queen moon", "king moon"], count):
                changed |= frequent_keywords([*kept, *told]) != keywords
    assert certified is (bool(keywords) and not changed)


def test_no_passage_can_spell_a_special_token_and_no_prompt_is_too_long(reader):
    _, model, tokenizer = reader
    found = module._Reader(model, tokenizer, ())
    name = tokenizer.backend.id_to_token(sorted(tokenizer.special_ids)[0])
    nested = f"{name[:2]}{name}{name[2:]}"
    prompt = found._prompt(f"who{name}?", [f"one {nested} two", "x" * 5000])
    assert name not in prompt and "one" in prompt and len(prompt) < 2000
    with pytest.raises(UserError, match="exceed the 2048 that the language model reads"):
        found._ask("sea " * 3000)


def test_the_command_prints_a_row_for_each_reader_and_kind_of_poison(
    place, small, reader, tmp_path, capsys, monkeypatch
):
    from lmlab import cli

    path = tmp_path / "items.json"
    rows = {
        each.id: {
            "id": each.id,
            "question": each.question,
            "correct answer": each.correct,
            "incorrect answer": each.incorrect,
            "adv_texts": list(each.texts),
        }
        for each in QUESTIONS
    }
    path.write_text(json.dumps(rows))
    arguments = [
        path,
        "--language-model",
        reader[0],
        "--data",
        small,
        "--encoder",
        place,
        "--cache",
        tmp_path / "cache",
    ]
    more = ["--precision", "fp32", "--k", "2", "--limit", "1", "--json"]
    monkeypatch.setattr("sys.argv", ["lmlab", "poison", "answers", *map(str, [*arguments, *more])])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = json.loads(capsys.readouterr().out)
    assert not ended.value.code and [row["poison"] for row in printed] == ["none"] * 3 + ["all"] * 3
    assert all(0 <= row[key] <= 1 for row in printed for key in ("correct", "wanted", "precision", "recall", "f1"))
