"""Examples of circuits from a model's own questions."""

from __future__ import annotations

import pytest

from lmlab.data.tokenizer import Tokenizer
from lmlab.errors import UserError
from lmlab.evals import Question
from lmlab.methods.edge_pruning.examples.questions import pairs_of_questions
from lmlab.methods.edge_pruning.examples.tasks import side_of


@pytest.fixture(scope="module")
def words():
    return Tokenizer.train(["import os\nreturn x\nclass A:\n    def f(self):\n        pass\n"] * 20, 300)


@pytest.fixture(scope="module")
def questions():
    return [
        Question(
            id=str(n),
            context=f"import os\nimport a{n}\nclass A{n}:\n    def f(self):\n",
            options=["        return x\n", "import os\n", "        pass\n", "class B:\n"],
            gold=n % 2,
        )
        for n in range(40)
    ]


def test_prompts_end_where_right_and_wrong_options_part(words, questions):
    rows = pairs_of_questions(questions, words, {"train": 6, "test": 4}, tokens=12)
    assert [row["split"] for row in rows] == ["train"] * 6 + ["test"] * 4
    prompts = {split: set() for split in ("train", "test")}
    for row in rows:
        assert len(row["clean"]) == len(row["corrupted"]) == 12 and row["clean"] != row["corrupted"]
        prompts[row["split"]] |= {tuple(row["clean"]), tuple(row["corrupted"])}
        (own,) = (
            each
            for each in questions
            if words.decode([*row["clean"], row["answer"]]) in each.context + each.options[each.gold]
            and side_of(each.context) == row["split"]
            and words.decode(row["clean"])[-20:] in each.context + "        "
        )
        wrong = [own.context + each for each in own.options if each != own.options[own.gold]]
        assert any(words.decode([*row["clean"], row["distractor"]]) in text for text in wrong)
        assert row["answer"] != row["distractor"]
    assert not prompts["train"] & prompts["test"]


def test_too_few_questions_are_told(words, questions):
    with pytest.raises(UserError, match="40 questions 0 give examples of the split train"):
        pairs_of_questions(questions, words, {"train": 6}, tokens=500)
    alike = [each.model_copy(update={"options": ["pass", "pass"], "gold": 0}) for each in questions]
    with pytest.raises(UserError, match="0 give examples"):
        pairs_of_questions(alike, words, {"train": 2}, tokens=12)
