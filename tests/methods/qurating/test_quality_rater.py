"""The loss against a loop, pooling, packing, training, and the layouts of judgments and raters."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quality_parts import make_rater, pair, sentence

from lmlab.data import Tokenizer
from lmlab.files import read_json, write_json
from lmlab.judging import Judgment
from lmlab.methods.qurating import (
    JudgmentRows,
    Rater,
    RaterConfig,
    bt_loss,
    encode_groups,
    pair_metrics,
    rater_step,
    train_rater,
)
from lmlab.methods.qurating.rating.problems import CriteriaMismatch, NoConfidentPairs
from lmlab.methods.qurating.rating.train_rater import split_groups
from lmlab.methods.qurating.report import judgment_sections, rater_sections
from lmlab.models import ModelConfig, Transformer, save_pretrained
from lmlab.reports import Note, Page


def test_labels_at_a_temperature_near_zero_are_certain_or_even() -> None:
    scores = torch.tensor([[0.3], [1.1]])
    for label, target in ((0.75, 1.0), (0.25, 0.0), (0.5, 0.5)):
        labels = torch.tensor([[[-100.0], [label]], [[1 - label], [-100.0]]])
        certain = torch.tensor([[[-100.0], [target]], [[1 - target], [-100.0]]])
        assert bt_loss(scores, labels, 0.0, 1e-308).item() == pytest.approx(bt_loss(scores, certain, 0.0).item())


@pytest.mark.parametrize(("confidence", "temperature"), list(product([0.0, 0.5, 0.8], [0.5, 1.0, 2.0])))
def test_the_loss_is_that_of_a_loop(confidence: float, temperature: float) -> None:
    rng = np.random.default_rng(0)
    scores = torch.tensor(3 * rng.standard_normal((5, 3, 2)))
    labels = rng.choice([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0, -100.0], (5, 3, 3, 2))
    labels[:, range(3), range(3)] = -100
    terms = []
    for g, i, j, c in product(range(5), range(3), range(3), range(2)):
        y = labels[g, i, j, c]
        if y == -100 or abs(2 * y - 1) < confidence - 1e-9:
            continue
        d = float(scores[g, j, c] - scores[g, i, c])
        target = y if y in (0, 1) else 1 / (1 + ((1 - y) / y) ** (1 / temperature))
        terms.append(np.logaddexp(0, d) - target * d)
    found = bt_loss(scores, torch.tensor(labels), confidence, temperature)
    assert float(found) == pytest.approx(np.mean(terms), abs=1e-6)


def test_scores_without_kept_terms_get_no_gradient_and_no_nan() -> None:
    scores = torch.randn(4, 2, 1, requires_grad=True)
    labels = torch.full((4, 2, 2, 1), -100.0)
    labels[0, 0, 1, 0], labels[0, 1, 0, 0] = 0.9, 0.1
    labels[1, 0, 1, 0] = 0.6
    bt_loss(scores, labels).backward()
    assert scores.grad is not None and (scores.grad[1:] == 0).all() and (scores.grad[0] != 0).all()
    nothing = bt_loss(scores, torch.full((4, 2, 2, 1), -100.0))
    nothing.backward()
    assert float(nothing) == 0 and torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("d", [800.0, -800.0])
def test_the_loss_is_finite_at_large_differences(d: float) -> None:
    scores = torch.tensor([[[0.0], [d]]], requires_grad=True)
    labels = torch.tensor([[[[-100.0], [1.0]], [[0.0], [-100.0]]]])
    loss = bt_loss(scores, labels)
    loss.backward()
    assert float(loss) == pytest.approx(max(0.0, -d)) and torch.isfinite(scores.grad).all()


def test_the_boundary_of_confidence_is_kept() -> None:
    labels = torch.tensor([[[[-100.0], [0.75]], [[0.25], [-100.0]]]])
    assert float(bt_loss(torch.zeros(1, 2, 1), labels, 0.5)) == pytest.approx(np.log(2))


def test_a_text_scores_the_same_alone_padded_and_packed(rater: Rater, tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, tokenizer.vocab_size, int(length)).tolist() for length in (5, 30, 17)]
    texts[0][-1] = 0  # id 0 may be real text
    alone = np.concatenate([rater.score_ids([ids]) for ids in texts])
    np.testing.assert_allclose(rater.score_ids(texts), alone, atol=1e-5)
    for side in ("left", "right"):
        ids, mask = torch.zeros(3, 40, dtype=torch.long), torch.zeros(3, 40, dtype=torch.long)
        for row, text in enumerate(texts):
            span = slice(40 - len(text), 40) if side == "left" else slice(0, len(text))
            ids[row, span], mask[row, span] = torch.tensor(text), 1
        with torch.no_grad():
            padded = rater.model(ids, attention_mask_BT=mask).scores_BC
        np.testing.assert_allclose(padded.numpy(), alone, atol=1e-5)
    rows = torch.tensor([[*texts[0], *texts[1], *texts[2], 0, 0]])
    documents = torch.tensor([[0] * 5 + [1] * 30 + [2] * 17 + [-1] * 2])
    with torch.no_grad():
        packed = rater.model(rows, document_ids_BT=documents, scores_at_BN=torch.tensor([[4, 34, 51]])).scores_BC
    np.testing.assert_allclose(packed[0].numpy(), alone, atol=1e-5)


def test_rows_hold_whole_groups_with_their_labels(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    judgments = [pair(sentence(rng, 10), sentence(rng, 20), 0.9) for _ in range(7)]
    groups, dropped = encode_groups([*judgments, pair("a", "b", 0.55)], ["one"], tokenizer, 64)
    rows = JudgmentRows(groups, 128)
    assert dropped == {"no confident label": 1} and rows.num_pairs == 7
    seen = []
    for number in range(len(rows)):
        row = rows[number]
        for (first, second), label in zip(row["pairs"], row["labels"][:, 0], strict=True):
            if label != -100:
                texts = [row["input_ids"][row["document_ids"] == text] for text in (first, second)]
                assert all(
                    (text == row["input_ids"][: row["ends"][place] + 1][-len(text) :]).all()
                    for text, place in zip(texts, (first, second), strict=True)
                )
                seen.append(tuple(tokenizer.decode(text) for text in texts))
    assert sorted(seen) == sorted(judgment.texts for judgment in judgments)


def test_the_step_is_the_loss_of_the_scores_of_single_texts(rater: Rater, tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    judgments = [
        Judgment(
            (sentence(rng, 8), sentence(rng, 12), sentence(rng, 4)),
            {
                name: np.array([[-100, p, -100], [1 - p, -100, 0.2], [-100, 0.8, -100]])
                for name, p in (("one", 0.9), ("two", 0.5))
            },
        )
        for _ in range(4)
    ]
    rows = JudgmentRows(encode_groups(judgments, ("one", "two"), tokenizer, 64)[0], 128)
    batch = {key: torch.from_numpy(np.stack([rows[number][key] for number in range(len(rows))])) for key in rows[0]}
    output = rater_step(0.5)(rater.model, batch)
    scores = torch.from_numpy(np.stack([rater.score_ids(tokenizer.encode_batch(each.texts)) for each in judgments]))
    labels = torch.from_numpy(
        np.stack([np.stack([each.average[name] for name in ("one", "two")], -1) for each in judgments])
    )
    assert float(output.loss_sum / output.count) == pytest.approx(float(bt_loss(scores, labels)), abs=1e-5)


TWO_PROCESSES = """
import sys, torch, numpy as np
from pathlib import Path
from lmlab.data import Loader, Tokenizer
from lmlab.distributed import joined, world
from lmlab.files import write_json
from lmlab.judging import read_judgments
from lmlab.methods.qurating import JudgmentRows, encode_groups, rater_step
from lmlab.models import ModelConfig, Transformer
from lmlab.train import OptimizerConfig, Trainer, TrainerConfig, whole_tensors

folder = Path(sys.argv[1])
tokenizer = Tokenizer.load(folder / "tokenizer")
with joined():
    groups = encode_groups(list(read_judgments(folder / "j.parquet")), ["one"], tokenizer, 64, 0.0)[0]
    rows = JudgmentRows(groups, 64)
    shape = {"num_layers": 1, "d_model": 16, "num_heads": 2, "max_seq_len": 64, "num_labels": 1}
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, **shape)).initialize(0)
    loop = {"steps": 2, "batch_size": 4, "precision": "fp32", "log_every": 1, "clip_norm": 1e9}
    config = TrainerConfig(optimizer=OptimizerConfig(learning_rate=1e-2), **loop)
    out = folder / f"out{world().size}"
    trainer = Trainer(model, rater_step(0.5), Loader(rows, 4, 0, world().rank, world().size), config, out)
    trainer.fit()
    weights = whole_tensors(trainer.model)
    if world().is_main:
        copies = {name: tensor.detach().clone() for name, tensor in weights.items()}
        torch.save(copies, folder / f"weights{world().size}.pt")
"""


@pytest.mark.slow
def test_two_processes_with_unequal_kept_counts_learn_as_one(
    forkserver: Any, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    from lmlab.judging import write_judgments
    from lmlab.train import read_metrics

    rng = np.random.default_rng(0)
    tokenizer.save(tmp_path / "tokenizer")
    judgments = [
        pair(sentence(rng, 12), sentence(rng, 12), float(rng.choice([0.9, 0.1, 0.6, 0.55]))) for _ in range(16)
    ]
    write_judgments(judgments, tmp_path / "j.parquet")
    (tmp_path / "go.py").write_text(TWO_PROCESSES)
    for processes in (1, 2):
        done = forkserver.run(tmp_path, script=tmp_path / "go.py", processes=processes, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (torch.load(tmp_path / f"weights{count}.pt", weights_only=True) for count in (1, 2))
    losses = [[row["loss"] for row in read_metrics(tmp_path / f"out{count}" / "metrics.jsonl")] for count in (1, 2)]
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-6)
    for name in one:
        np.testing.assert_allclose(one[name].numpy(), two[name].numpy(), atol=1e-5)


def test_groups_with_a_common_document_are_on_one_side() -> None:
    chain = [pair("a", "b", 0.9, ids=(f"d{number}", f"d{number + 1}")) for number in range(0, 5)]
    others = [pair("a", "b", 0.9, ids=(f"x{number}", f"y{number}")) for number in range(400)]
    train, held = split_groups([*chain, *others], 0.1, 0)
    assert {len([each for each in part if each.ids[0].startswith("d")]) for part in (train, held)} == {0, 5}
    assert 20 < len(held) < 65
    assert split_groups([*others, *chain][::-1], 0.1, 0)[1].__len__() == len(held)


def small_config(**changes: Any) -> RaterConfig:
    values: dict[str, Any] = {
        "size": {"num_layers": 1, "d_model": 32, "num_heads": 2},
        "max_tokens": 32,
        "row_tokens": 128,
        "batch_pairs": 8,
    }
    return RaterConfig(**values | {"lr": 3e-3, "epochs": 6, "trainer": {"precision": "fp32"}, **changes})


def length_judgments(count: int, seed: int = 0) -> list[Judgment]:
    """The text with the word `silver` is better by 9 to 1."""
    rng, found = np.random.default_rng(seed), []
    for number in range(count):
        good, bad = "silver " + sentence(rng, 6).replace("silver", "stone"), sentence(rng, 7).replace("silver", "stone")
        first = rng.random() < 0.5
        found.append(
            pair(
                good if first else bad,
                bad if first else good,
                0.05 if first else 0.95,
                ids=(f"a{number}", f"b{number}"),
            )
        )
    return found


def test_a_judgments_folder_in_the_published_layout_trains_and_the_rater_comes_back(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    from transformers import AutoModelForSequenceClassification

    rows = []
    for judgment in length_judgments(160):
        p = judgment.average["one"][0, 1]
        votes_b = [[-100, round(20 * p)], [round(20 * (1 - p)), -100]]
        votes_a = [[-100, 20 - round(20 * p)], [20 - round(20 * (1 - p)), -100]]
        average = [[-100.0, p], [1 - p, -100.0]]
        rows.append(
            {
                "texts": list(judgment.texts),
                "style_votes_a": votes_a,
                "style_votes_b": votes_b,
                "style_average": average,
            }
        )
    (tmp_path / "judgments").mkdir()
    (tmp_path / "judgments" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from lmlab.judging import read_judgments

    judgments = list(read_judgments(tmp_path / "judgments"))
    trained = train_rater(judgments, ("style",), tokenizer, small_config(validation=0.2), tmp_path / "out")
    assert trained.results["metrics"]["style"]["at"]["0.5"]["accuracy"] > 0.9
    assert trained.results["metrics"]["style"]["at"]["0.5"]["ceiling"] > 0.99
    back = Rater.from_pretrained(tmp_path / "out", precision="fp32")
    texts = ["silver garden", "stone river window"]
    np.testing.assert_allclose(back.rate(texts), trained.rater.rate(texts), atol=1e-6)
    assert back.criteria == ("style",) and back.reward(["silver garden"])[0] > back.reward(["stone garden"])[0]
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "rater").eval()
    ids = tokenizer.encode(texts[1])
    with torch.no_grad():
        logits = theirs(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)).logits
    np.testing.assert_allclose(logits.numpy(), back.score_ids([ids]), atol=1e-4)


def test_shuffled_labels_teach_nothing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    judgments = length_judgments(120)
    order = np.random.default_rng(1).permutation(len(judgments))
    shuffled = [
        Judgment(each.texts, judgments[place].average, {}, each.ids)
        for each, place in zip(judgments, order, strict=True)
    ]
    held = length_judgments(200, seed=9)
    good, bad = (
        train_rater(each, ("one",), tokenizer, small_config(), tmp_path / name, heldout=held)
        for each, name in ((judgments, "good"), (shuffled, "bad"))
    )
    accuracy = [each.results["metrics"]["one"]["at"]["0"]["accuracy"] for each in (good, bad)]
    assert accuracy[0] > 0.95 and accuracy[1] < 0.75


def test_the_head_of_a_language_model_is_replaced(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = Transformer(
        ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=1, d_model=32, num_heads=2, max_seq_len=64)
    ).initialize(0)
    save_pretrained(model, tmp_path / "lm")
    tokenizer.save(tmp_path / "lm")
    trained = train_rater(
        length_judgments(20), ("one",), tokenizer, small_config(epochs=1), tmp_path / "out", init=tmp_path / "lm"
    )
    assert trained.rater.model.config.num_labels == 1


def test_a_training_of_one_step_says_that_nothing_was_learned(tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = small_config(epochs=1, batch_pairs=512)
    trained = train_rater(length_judgments(20), ("one",), tokenizer, config, tmp_path / "out")
    assert trained.results["training"]["steps"] == 1
    pairs = trained.results["pairs"]
    assert f"{pairs} pairs in 1 step, 512 pairs at a time" in trained.results["warning"]
    (section,) = rater_sections(trained.results)
    assert any(isinstance(block, Note) and block.kind == "warning" for block in section.blocks)


def test_a_bias_that_is_rounding_is_zero_and_unasked_groups_are_told() -> None:
    criterion = {"labels": 60, "position_bias": -2.82e-18, "position_bias_error": 1.6e-18, "swap_consistency": 1.0}
    figures = {"groups": 60, "questions": 118, "identical_groups": 1, "skipped_groups": 0, "missing": []}
    figures |= {"judge": "j", "connected_sets": 1, "criteria": {"c": criterion | {"confidence": [60] + [0] * 9}}}
    page = Page("p", sections=judgment_sections(figures)).to_html()
    assert "e-18" not in page
    assert "1 group was not shown, whose texts are equal." in page
    assert "its confidence is |2y - 1|" in page


def test_nothing_confident_is_an_error_with_a_histogram(tokenizer: Tokenizer) -> None:
    with pytest.raises(NoConfidentPairs, match=r"'one'.*0\.1: 3"):
        encode_groups([pair("a b", "c d", 0.55 + 0.01 * number) for number in range(3)], ["one"], tokenizer, 64)


def test_other_criteria_than_the_checkpoint_s_are_an_error_with_both_lists(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    make_rater(tokenizer).save(tmp_path)
    with pytest.raises(CriteriaMismatch, match=r"one, two.*three"):
        Rater.from_pretrained(tmp_path, criteria=["three", "four"])


def test_a_bare_checkpoint_with_four_scalars_has_the_published_criteria(
    tmp_path: Path, tokenizer: Tokenizer, caplog: Any
) -> None:
    make_rater(tokenizer, ("a", "b", "c", "d")).save(tmp_path / "four")
    make_rater(tokenizer).save(tmp_path / "two")
    for name in ("four", "two"):
        settings = read_json(tmp_path / name / "config.json")
        del settings["criteria"]
        write_json(tmp_path / name / "config.json", settings)
    assert Rater.from_pretrained(tmp_path / "four").criteria == (
        "writing_style",
        "required_expertise",
        "facts_and_trivia",
        "educational_value",
    )
    assert "taken for" in caplog.text
    with pytest.raises(CriteriaMismatch):
        Rater.from_pretrained(tmp_path / "two")


def test_metrics_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, log_loss

    rng = np.random.default_rng(0)
    d, y = rng.standard_normal((500, 1)), rng.random((500, 1))
    found = pair_metrics(d, y, ["q"])["q"]["at"]
    for m in (0.0, 0.5, 0.8):
        kept = np.abs(2 * y[:, 0] - 1) >= m
        assert found[f"{m:g}"]["pairs"] == kept.sum()
        assert found[f"{m:g}"]["accuracy"] == pytest.approx(accuracy_score(y[kept, 0] >= 0.5, d[kept, 0] >= 0))
    hard = (y >= 0.5).astype(float)
    expected = log_loss(hard[:, 0], 1 / (1 + np.exp(-d[:, 0])))
    assert pair_metrics(d, hard, ["q"])["q"]["at"]["0"]["cross_entropy"] == pytest.approx(expected)
