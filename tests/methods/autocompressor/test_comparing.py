"""The comparison: its table from rows by hand, what memories cost, and the command on a small model."""

from __future__ import annotations

import json
import math

import pytest
import torch
from small_models import random_model

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.methods.autocompressor.comparing.accounting import PeakBytes, bytes_in_use, stored_bytes
from lmlab.methods.autocompressor.comparing.cases import Case, Question
from lmlab.methods.autocompressor.comparing.measure import Row, answer_nll, measure
from lmlab.methods.autocompressor.comparing.table import COLUMNS, cells, lines_of
from lmlab.methods.autocompressor.fitting.files import save_kind
from lmlab.methods.autocompressor.kinds.base import create
from lmlab.models import Memory, Piece, from_pretrained, load_memory, save_pretrained


def row(case, question, kind, ratio, nll, wrong=5.0):
    return Row("t", case, question, kind, ratio, nll, nll < 1, wrong, 3.0, 10, 20, 30, 0.5)


def test_of_a_gain_that_cannot_be_told_there_is_no_share():
    rows = []
    for number in range(6):  # the whole context gains 0.1 in half of the cases, and loses 0.05 in the others
        case, full = f"c{number}", 4.0 - 0.1 * (number % 2) + 0.05 * (1 - number % 2)
        rows += [row(case, 0, "none", 1.0, 4.0), row(case, 0, "full", 1.0, full), row(case, 0, "soft", 2.0, 4.5)]
    lines = {line.kind: line for line in lines_of(rows)}
    found = lines["soft"].retained
    assert all(math.isnan(each) for each in (found.value, found.low, found.high))
    assert math.isnan(lines["soft"].wrong)
    assert dict(zip(COLUMNS, cells(lines["soft"]), strict=True))["gain retained"] == "n/a"


def test_gain_retained_is_of_the_gain_of_the_full_context():
    rows = []
    for number in range(6):
        case = f"c{number}"
        rows += [row(case, 0, "none", 1.0, 4.0 + number), row(case, 0, "full", 1.0, 0.5)]
        rows += [row(case, 0, "prune:random", 2.0, 3.0 + number), row(case, 0, "prune:snap", 2.0, 1.0, 4.0 + number)]
    lines = {line.kind: line for line in lines_of(rows)}
    assert lines["none"].retained.value == 0 and lines["full"].retained.value == 1
    # without 6.5, with 0.5, with the memory 1.0, with another's as without
    assert lines["prune:snap"].retained.value == pytest.approx(5.5 / 6)
    assert lines["prune:snap"].wrong == pytest.approx(0)
    over = lines["prune:snap"].over_random
    assert over.value == pytest.approx(4.5) and over.low > 2 and lines["prune:random"].over_random is None
    above = lines["prune:snap"].over_full
    assert above.value == pytest.approx(0.5) == above.low and lines["full"].over_full.value == 0
    assert lines["prune:snap"].accuracy == 0 and lines["full"].accuracy == 1
    with pytest.raises(ValueError, match="none and full"):
        lines_of([each for each in rows if each.kind != "full"])


@torch.no_grad()
def test_bytes_in_use_count_what_a_reading_model_holds():
    model, ids = random_model(), torch.arange(16)[None]
    position = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, width, bytes
    pruned = create("prune:norm", model, ratio=2).compress(ids)
    assert bytes_in_use(pruned, model) == 8 * position
    assert stored_bytes(pruned) == 8 * position + 2 * 2 * 8 * 4 + 8  # beside them positions and the next one
    chunk = create("truncate", model, ratio=2).compress(ids)
    assert bytes_in_use(chunk, model) == 8 * position and stored_bytes(chunk) == 8 * 8
    vectors = Memory(pieces=(Piece(torch.zeros(1, 8, 32)),))
    assert bytes_in_use(vectors, model) == 8 * position and stored_bytes(vectors) == 8 * 32 * 4


def test_the_peak_counts_what_is_held_at_once_and_no_views():
    with PeakBytes() as peak:
        one = torch.ones(1000)
        two = one.view(10, 100)[3:] + 1
        del two
        three = one * 2
        del one, three
        torch.ones(500)
    assert peak.peak == 8000 and peak.held == 0


@torch.no_grad()
def test_answers_are_scored_as_in_the_plain_text():
    model = random_model()
    questions = [Question((5, 6, 7), (8, 9)), Question((4,), (3,))]
    case = Case("t", 10, "c", tuple(range(10, 20)), tuple(questions))
    other = Case("t", 10, "d", case.context[::-1], tuple(questions))
    compressors = {name: create(name, model) for name in ("none", "full")}
    rows = next(measure(compressors, [case, other], [2.0], False))
    for kind, before in (("none", ()), ("full", case.context)):
        for number, question in enumerate(questions):
            ids = torch.tensor([[*before, *question.ids, *question.answer]])
            log_probs = model(ids).logits_BTV[0].log_softmax(-1)
            size = len(question.answer)
            expected = (
                -sum(float(log_probs[-size - 1 + place, token]) for place, token in enumerate(question.answer)) / size
            )
            (found,) = [each for each in rows if each.kind == kind and each.question == number]
            assert found.nll == pytest.approx(expected, abs=1e-5)
    full = [each for each in rows if each.kind == "full"]
    assert [each.wrong_nll for each in full] != [each.nll for each in full]
    assert answer_nll(model, Memory(), questions)[1][0] == pytest.approx([e for e in rows if e.kind == "none"][1].nll)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A random model with a tokenizer of its own, as a directory."""
    directory = tmp_path_factory.mktemp("small")
    tokenizer = Tokenizer.train(["The quick brown fox costs 4. Question: What do they cost together?\nAnswer: 12"], 300)
    save_pretrained(random_model(vocab_size=tokenizer.vocab_size, max_seq_len=256), directory)
    tokenizer.save(directory, 256)
    return directory


HOW = ("--task", "arithmetic", "--length", "96", "--contexts", "2", "--questions", "2", "--ratio", "2,8")
NAMES = ("truncate", "prune:random", "prune:kvzip", "prune:snap+prune:norm")
KINDS = tuple(each for name in NAMES for each in ("--kind", name))


def test_the_command_gives_a_row_for_each_kind_at_each_ratio_and_goes_on(small, tmp_path, lmlab):
    done = lmlab("compress", "compare", small, *HOW, *KINDS, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    table = json.loads((tmp_path / "out/table.json").read_text())
    found = [(line["kind"], line["ratio"]) for line in table["lines"]]

    assert found == [("none", 1.0), ("full", 1.0), *((name, ratio) for name in NAMES for ratio in (2.0, 8.0))]
    for line in table["lines"]:
        assert {"retained", "wrong", "stored", "in_use", "peak"} <= set(line)
    by_ratio = {line["positions"] for line in table["lines"] if line["ratio"] == 2}
    assert max(by_ratio) - min(by_ratio) < 1  # equal key-value positions
    # cut off after one context, within a line
    whole = (tmp_path / "out/rows.jsonl").read_bytes()
    first = whole.index(b"\n") + 1
    (tmp_path / "out/rows.jsonl").write_bytes(whole[: first + 50])
    before = {line["kind"]: line["nll"] for line in table["lines"]}
    assert lmlab("compress", "compare", small, *HOW, *KINDS, "--out", tmp_path / "out").code == 0
    again = json.loads((tmp_path / "out/table.json").read_text())
    assert {line["kind"]: line["nll"] for line in again["lines"]} == before
    other = lmlab("compress", "compare", small, *HOW, "--seed", "1", "--out", tmp_path / "out")
    assert other.code == 2 and "another model or another attention kernel" in other.err


def test_a_trained_kind_with_other_settings_is_another_comparison(small, tmp_path, lmlab):
    """Its rows would otherwise be taken for those of the earlier scale, which is in no weight."""
    how = ("--task", "arithmetic", "--length", "96", "--contexts", "2", "--questions", "1", "--kind", "none")
    done = []
    for name, scale in (("one", 1.0), ("other", 0.5)):
        compressor = create("meanpool", from_pretrained(small), vector_scale=scale)
        save_kind(compressor, tmp_path / name, companions=small)
        trained = ("--ratio", "4", "--trained", tmp_path / name)
        done.append(lmlab("compress", "compare", small, *how, *trained, "--out", tmp_path / "out"))
    assert done[0].code == 0, done[0].err
    assert done[1].code == 2 and "holds a comparison of other settings" in done[1].err, done[1].err


def test_what_cannot_be_compared_is_refused(small, tmp_path, lmlab):
    for said, *how in (
        ("no kind of compression 'prune:snip'", "--kind", "prune:snip"),
        ("'icae' must be trained before it is compared", "--kind", "icae"),
        ("'icae' must be trained before it is compared", "--kind", "icae+prune:snap"),
        ("at least 2 contexts", "--contexts", "1"),
        ("exceeds the model's window of 256", "--length", "300"),
        ("ratios.0", "--ratio", "0.5"),
    ):
        done = lmlab("compress", "compare", small, "--task", "arithmetic", "--length", "96", *how, "--out", tmp_path)
        assert done.code == 2 and said in done.err, done.err


def test_a_cartridge_is_a_memory_file_for_its_model(small, tmp_path, lmlab):
    (tmp_path / "text.txt").write_text("The quick brown fox costs 4. " * 4)
    how = ("--rows", "4", "--steps", "4", "--excerpt", "8", "--out", tmp_path / "c.safetensors")
    done = lmlab("compress", "cartridge", small, tmp_path / "text.txt", *how)
    assert done.code == 0, done.err
    model = from_pretrained(small)
    memory = load_memory(tmp_path / "c.safetensors", model)
    assert memory.kind == "kv" and memory.rows.slots == 4 and memory.about["compressor"] == "cartridge"
    with pytest.raises(UserError, match="other weights"):
        load_memory(tmp_path / "c.safetensors", random_model(vocab_size=300, seed=5))
    assert "How large" in lmlab("compress", "cartridge", small, tmp_path / "text.txt", "--out", tmp_path / "d").err
    (tmp_path / "empty.txt").write_text("")
    empty = lmlab("compress", "cartridge", small, tmp_path / "empty.txt", *how)
    assert empty.code == 2 and "has no text" in empty.err


def test_the_probe_tells_what_is_lost_by_kinds_of_words(small, tmp_path, lmlab):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"The fox met Anna in 198{number}. " * 4)
    files = [tmp_path / f"{number}.txt" for number in range(3)]
    done = lmlab("compress", "probe", small, *files, "--kind", "prune:norm", "--ratio", "2")
    assert done.code == 0 and "name" in done.out and "number" in done.out, done.err
    one = lmlab("compress", "probe", small, files[0], "--kind", "prune:norm", "--ratio", "2")
    assert one.code == 0 and "nan" not in one.out  # of one text nothing is known of the spread
    assert lmlab("compress", "probe", small, tmp_path / "none.txt").code == 2
    assert "must be trained" in lmlab("compress", "probe", small, *files, "--kind", "icae").err
