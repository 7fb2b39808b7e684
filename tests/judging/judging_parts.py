"""A wording and a judge for the tests."""

from __future__ import annotations

from lmlab.judging import RuleJudge, Wording, make_criterion

WORDING = Wording(
    version=1,
    system="You are a judge.",
    pair="Choose the one which {clause}\n[{first}]\n{text_a}\n[{second}]\n{text_b}\nNow you choose.",
    single="Grade how far it {clause}\n{text}",
    labels=("A", "B"),
    criteria={"clarity": "is clearer.", "depth": "goes deeper."},
)
CLARITY, DEPTH = (make_criterion(name, None, WORDING) for name in WORDING.criteria)
REASONED = make_criterion(
    "clarity", None, WORDING.model_copy(update={"pair_reasons": WORDING.pair.replace("you choose", "say why in JSON")})
)
LONGER = RuleJudge(lambda question: 0.8 if len(question.text_b) > len(question.text_a) else 0.2, "the longer one")
