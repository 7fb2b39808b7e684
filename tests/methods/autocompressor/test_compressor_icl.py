"""Demonstrations in the context: prompts, answers, calibration and draws are those of the paper."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.evals.scoring import ModelScorer
from lmlab.evals.tasks import olmes
from lmlab.files import write_jsonl
from lmlab.methods.autocompressor import AutoCompressor, CompressorConfig
from lmlab.methods.autocompressor.measure.icl.icl import IclSettings, Prompting, draw, measure_icl, predict, seed_of
from lmlab.methods.autocompressor.measure.icl.templates import TASKS, IclTask, find_task
from lmlab.models import ModelConfig, SegmentError, Transformer, save_pretrained

_ITEMS = [{"sentence": f"the film {word} me", "label": n % 2} for n, word in enumerate(["bored", "moved"] * 8)]


@pytest.fixture(scope="module")
def prompting() -> Prompting:
    tokenizer = Tokenizer.train(["Sentence: the film bored me\nSentiment: negative positive N/A moved"] * 4, 300)
    shape = ModelConfig.model_validate(
        {"vocab_size": tokenizer.vocab_size, "num_layers": 2, "d_model": 32, "num_heads": 2, "max_seq_len": 512}
    )
    model = Transformer(shape).initialize(3)
    compressor = AutoCompressor(model, CompressorConfig(summary_length=4))
    with torch.no_grad():
        for each in model.parameters():
            each.mul_(4)
        compressor.summary_embedding_ND.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    return Prompting(compressor.eval(), tokenizer, TASKS["sst2"])


def test_templates_are_those_of_the_paper() -> None:
    item = {"premise": "It rains.", "hypothesis": "It is wet", "label": 2}
    assert TASKS["cb"].told(item, "neither") == (
        "It rains.\nquestion: It is wet. true, false or neither?\nanswer: neither"
    )
    assert TASKS["cb"].told(item, "") == "It rains.\nquestion: It is wet. true, false or neither?\nanswer:"
    multirc = {"paragraph": "P", "question": "Q?", "candidate": "C", "label": 1}
    assert find_task("multirc").told(multirc, "correct") == "Context: P\nQ?\nC\nanswer: correct"
    assert find_task("multirc", True).told(multirc, "correct") == "Context: P\nQ?\ncorrect\nanswer: correct"
    assert [name for name, task in TASKS.items() if task.balanced] == ["sst2", "cb", "copa", "multirc", "mr", "subj"]
    assert [name for name, task in TASKS.items() if task.calibrated] == ["ag_news", "sst2", "boolq", "wic"]
    assert [name for name, task in TASKS.items() if task.calibrates_each] == ["wic", "wsc", "copa"]
    with pytest.raises(UserError, match="Did you mean 'sst2'"):
        find_task("sst22")
    with pytest.raises(UserError, match="parity is of multirc"):
        find_task("sst2", parity=True)
    with pytest.raises(UserError, match="record 2 has no field sentence"):
        TASKS["sst2"].items([{"sentence": "x", "label": 0}, {"label": 0}], "'here'")
    with pytest.raises(UserError, match="label 7 is none of"):
        TASKS["sst2"].items([{"sentence": "x", "label": 7}], "'here'")


def test_draws_are_repeatable_and_balanced_where_they_shall_be() -> None:
    labels = [0] * 12 + [1] * 5 + [2] * 5
    chosen = draw(labels, 9, 4, True)
    assert chosen == draw(labels, 9, 4, True) != draw(labels, 9, 5, True)
    assert Counter(labels[n] for n in chosen) == {0: 3, 1: 3, 2: 3}
    assert len(set(draw(labels, 22, 1, False))) == 22
    assert len(draw(labels, 40, 0, True)) == 40  # more than there are rounds: they are repeated
    with pytest.raises(UserError, match="23 demonstrations"):
        draw(labels, 23, 0, False)
    assert seed_of(3, 90, 5) == 3_090_005


def test_answers_are_scored_behind_template_and_vectors(prompting: Prompting) -> None:
    """Against the logits of one row at a time."""
    compressor, tokenizer, task = prompting.compressor, prompting.tokenizer, prompting.task
    vectors = prompting.compressed([_ITEMS[:3], _ITEMS[3:5]])
    assert vectors is not None and vectors.length == 8
    text = "".join(f"Sentence: {each['sentence']}\nSentiment: {task.options[each['label']]}\n\n" for each in _ITEMS[:3])
    first = compressor.compress(torch.tensor([tokenizer.encode_prompt(text)])).vectors_BPD
    assert torch.allclose(vectors.vectors_BPD[:, :4], first, atol=1e-5)
    rows = list(prompting.rows("", _ITEMS[6], first=False))
    losses = prompting.losses(rows, vectors)
    for (ids, count), loss in zip(rows, losses, strict=True):
        assert ids == tokenizer.encode(
            f"Sentence: the film bored me\nSentiment: {task.options[rows.index((ids, count))]}"
        )
        logits = compressor(torch.tensor([ids]), soft_prompt=vectors).logits_BTV
        expected = torch.nn.functional.cross_entropy(logits[0, -count - 1 : -1], torch.tensor(ids[-count:]))
        assert loss == pytest.approx(float(expected), abs=1e-4)


def test_calibration_subtracts_what_an_emptied_item_costs(prompting: Prompting) -> None:
    plain, tests = _ITEMS[:2], _ITEMS[2:8]
    before = "".join(prompting.demonstration(item) for item in plain)
    empty = prompting.losses(list(prompting.rows(before, {"sentence": "N/A"}, True)), None)
    for calibrate in (False, True):
        expected = []
        for item in tests:
            own = prompting.losses(list(prompting.rows(before, item, True)), None)
            own = [a - b * calibrate for a, b in zip(own, empty, strict=True)]
            expected.append(own.index(min(own)))
        assert predict(prompting, tests, None, plain, calibrate) == expected


def test_plain_scores_are_those_of_the_core(prompting: Prompting) -> None:
    """The log-probabilities that `lmlab eval` gives the same requests."""
    from lmlab.evals.prefix_sharing import Window

    rows = list(prompting.rows("", _ITEMS[0], first=True))
    scorer = ModelScorer(prompting.compressor.model, "fp32")
    found = dict(scorer.score([Window(ids, count) for ids, count in rows]))
    for number, loss in enumerate(prompting.losses(rows, None)):
        assert loss == pytest.approx(-found[number].log_prob / rows[number][1], abs=1e-4)


def test_an_attempt_that_was_cut_off_goes_on(
    prompting: Prompting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = IclSettings(soft=(2, 2), plain=1, seeds=3)
    whole = measure_icl(prompting, _ITEMS[:10], _ITEMS[10:], settings, tmp_path / "whole")
    calls, compressed = iter(range(9)), Prompting.compressed
    monkeypatch.setattr(Prompting, "compressed", lambda *given: 1 / 0 if next(calls) == 2 else compressed(*given))
    with pytest.raises(ZeroDivisionError):
        measure_icl(prompting, _ITEMS[:10], _ITEMS[10:], settings, tmp_path / "cut")
    monkeypatch.undo()
    assert measure_icl(prompting, _ITEMS[:10], _ITEMS[10:], settings, tmp_path / "cut") == whole
    assert [each["soft"] for each in whole["seeds"]] == [[2, 2]] * 3 and whole["seeds"][0]["vectors"] == 8
    assert whole["majority"] == 0.5 and not math.isnan(whole["sd"])
    by_tokens = measure_icl(prompting, _ITEMS[:10], _ITEMS[10:], IclSettings((), (60,), 0, 30, 1), tmp_path / "t")
    assert by_tokens["seeds"][0]["soft"][0] >= 1 and by_tokens["sd"] is None
    other = Prompting(prompting.compressor, prompting.tokenizer, type("Other", (IclTask,), {})(**vars(prompting.task)))
    with pytest.raises(UserError, match="another measurement|another model"):  # by a template of the same name
        measure_icl(other, _ITEMS[:10], _ITEMS[10:], settings, tmp_path / "cut")
    with pytest.raises(UserError, match="segment of demonstrations is empty"):
        measure_icl(prompting, _ITEMS[:10], _ITEMS[10:], IclSettings(soft_tokens=(2,)), tmp_path / "e")


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        # the window of 512 tokens holds between 32 and 64 of them
        (IclSettings(soft=(9999,)), 64),
        (IclSettings(soft=(2, 9999)), 64),
        (IclSettings(plain=9999), 64),
        (IclSettings(soft=(2,) * 130), 0),  # vectors alone
        (IclSettings(soft_tokens=(9999,)), 0),
        (IclSettings(soft_tokens=(100, 505)), 0),
        (IclSettings(plain_tokens=9999), 0),
        (IclSettings(soft_tokens=(60,), plain_tokens=509), 0),
    ],
)
def test_what_the_window_cannot_hold_is_refused_before_it_is_tokenized(
    settings: IclSettings, most: int, prompting: Prompting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, read = Tokenizer.encode, list[int]()

    def counted(self: Tokenizer, text: str, *given: Any, **named: Any) -> Any:
        read.append(len(text))
        return encode(self, text, *given, **named)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    with pytest.raises(SegmentError, match="window has 512"):
        measure_icl(prompting, _ITEMS[:10], _ITEMS[10:], settings, tmp_path / "out")
    assert max(read, default=0) <= most * len(prompting.demonstration(_ITEMS[0]))


def test_demonstrations_that_fill_the_window_are_read(prompting: Prompting) -> None:
    """Looked at in parts, they have the tokens that they have as one text."""
    model = prompting.compressor.model.config
    told = prompting.demonstration(_ITEMS[0])
    for count in range(1, 60):
        items = [_ITEMS[0]] * count
        ids = prompting.tokenizer.encode_prompt(told * count, "as_text")
        if len(ids) + 4 > model.max_seq_len:
            break
        assert prompting.fitting(items, 0, True) == ids
    assert count > 16
    with pytest.raises(SegmentError, match="4 summary tokens"):
        prompting.fitting(items, 0, True)


def test_the_command(lmlab: Callable[..., Any], prompting: Prompting, tmp_path: Path) -> None:
    save_pretrained(prompting.compressor.model, tmp_path / "c")
    prompting.tokenizer.save(tmp_path / "c")
    prompting.compressor.save(tmp_path / "c")
    for name, rows in (("train", _ITEMS[:10]), ("test", _ITEMS[10:])):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    data = ("--demonstrations", tmp_path / "train.jsonl", "--tests", tmp_path / "test.jsonl")
    command = ("compress", "icl", tmp_path / "c", "--task", "sst2")
    found = lmlab(*command, *data, "--soft", "2,2", "--plain", 1, "--seeds", 2, "--out", tmp_path / "o")
    assert found.code == 0 and "on 6 tests" in found.out, found.err
    found = lmlab(*command, "--soft", "2", "--demonstrations", tmp_path / "train.jsonl", "--out", tmp_path / "p")
    assert found.code == 2 and "both" in found.err
    if olmes.version() is not None:
        found = lmlab(*command, "--soft", "2", "--seeds", 1, "--limit", 4, "--out", tmp_path / "q")
        assert found.code == 0 and "on 4 tests" in found.out, found.err
