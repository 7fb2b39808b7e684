"""Ways to compute: measured once, kept by machine, and the same from the first step of a run to the last."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lmlab.errors import UserError
from lmlab.files import read_json, update_json
from lmlab.hardware import threads, ways
from lmlab.hardware.threads import settle
from lmlab.models import tune
from lmlab.models.attention.fused import plan_runs
from lmlab.models.attention.visibility import Visibility, document_starts, document_stops
from lmlab.models.layers.feed_forward import gated_product
from lmlab.models.moe.config import MoEConfig
from lmlab.models.moe.experts import run_experts
from lmlab.models.moe.router import pairs_of_tokens
from lmlab.models.tune import answer, measure

SHORT = "attention fp32 one short"


@pytest.fixture
def small(monkeypatch):
    """The shortest texts of each class."""
    monkeypatch.setattr(tune, "_TOKENS", {"short": (4, 16), "medium": (1, 256), "long": (1, 2048)})
    monkeypatch.setattr(tune, "_PACKED", dict.fromkeys(ways.LENGTHS, 2))
    monkeypatch.setattr(tune, "_FEWEST_ROUNDS", 1)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(ways, "_in_force", None)
    return tmp_path / "ways.json"


def forget(monkeypatch):
    """As a new process begins."""
    monkeypatch.setattr(ways, "_in_force", None)


def test_what_was_measured_holds_for_later_processes(cache, monkeypatch):
    assert ways.in_force() == ways.defaults() and not ways.was_tuned()
    ways.remember({SHORT: {"fused": 2.0, "blocks": 1.0}}, {SHORT: "blocks"})
    forget(monkeypatch)
    assert ways.way(SHORT) == "blocks" and ways.was_tuned()
    assert {**ways.in_force(), SHORT: "fused"} == ways.defaults()


def test_another_machine_or_another_version_of_pytorch_has_its_own_answers(cache, monkeypatch):
    ways.remember({}, {SHORT: "blocks"})
    monkeypatch.setattr(torch, "__version__", "9.9")
    forget(monkeypatch)
    assert ways.way(SHORT) == "fused"
    ways.remember({}, {SHORT: "mixed"})
    assert len(json.loads(cache.read_text())) == 2


def test_another_number_of_threads_has_its_own_answers(cache, monkeypatch):
    ways.remember({}, {SHORT: "blocks"})
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert ways.way(SHORT) == "blocks"  # not while it computes
        monkeypatch.setenv("LMLAB_THREADS", str(before + 1))
        settle()
        assert ways.way(SHORT) == "fused" and not ways.was_tuned()
        monkeypatch.setenv("LMLAB_THREADS", str(before))
        settle()
        assert ways.way(SHORT) == "blocks"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("content", ["[]", "{", "null", '{"%s": 3}', '{"%s": {"answers": {"attention": "?"}}}'])
def test_a_damaged_cache_is_none(cache, content):
    cache.write_text(content.replace("%s", ways.machine_key()))
    assert ways.in_force() == ways.defaults() and not ways.was_tuned()


def test_without_a_home_the_defaults_hold(monkeypatch):
    monkeypatch.setattr(ways, "_in_force", None)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("LMLAB_CACHE", "~nobody-of-this-name/cache")
    assert ways.in_force() == ways.defaults()
    with pytest.raises(UserError, match="LMLAB_CACHE"):
        ways.remember({}, {})


def test_a_run_keeps_its_answers_and_afterwards_those_of_the_machine_are_back(cache):
    with ways.using({SHORT: "mixed", "of another version": "x", "products fp32": "of another library"}):
        assert ways.in_force() == ways.defaults() | {SHORT: "mixed"}
    assert ways.in_force() == ways.defaults()
    assert ways.unknown({SHORT: "mixed", "of another version": "x"}) == ["of another version"]


def test_a_way_must_be_clearly_faster_than_the_default():
    assert answer(SHORT, {"fused": 1.0, "mixed": 1.2, "blocks": 0.97}) == "fused"
    assert answer(SHORT, {"fused": 1.0, "mixed": 1.2, "blocks": 0.9}) == "blocks"


def test_every_question_is_measured_at_shapes_that_it_is_about(cache, small, monkeypatch):
    asked = set()
    way = ways.way
    monkeypatch.setattr(ways, "way", lambda question: asked.add(question) or way(question))
    for name, question in ways.QUESTIONS.items():
        asked.clear()
        (found,) = measure([name], seconds=0.0)
        assert found.question == name and set(found.seconds) == {
            each for each in question.ways if question.possible(each)
        }
        assert all(0 < seconds < 60 for seconds in found.seconds.values())
        assert asked <= {name}  # what is measured is what a run of that class will ask


def test_a_way_must_be_faster_a_second_time(monkeypatch, cache):
    turns = [{"fused": 1.0, "mixed": 0.8, "blocks": 0.9}, {"fused": 1.0, "mixed": 0.99}]
    monkeypatch.setattr(tune.Waiting, "share", lambda self: 0.0)  # whatever else the machine does just now
    monkeypatch.setattr(
        tune, "_quickest", lambda steps, seconds: {way: turns[0][way] for way in steps} and turns.pop(0)
    )
    (found,) = measure([SHORT])
    assert found.answer == "fused" and found.seconds["mixed"] == 0.8 and not turns
    turns += [{"fused": 1.0, "mixed": 0.8, "blocks": 0.9}, {"fused": 1.0, "mixed": 0.8}]
    (found,) = measure([SHORT])
    assert found.answer == "mixed" and not turns


def test_what_is_measured_beside_busy_programs_changes_nothing(monkeypatch, cache):
    ways.remember({}, {SHORT: "blocks"})
    monkeypatch.setattr(tune, "_quickest", lambda steps, seconds: {"fused": 1.0, "mixed": 0.5, "blocks": 2.0})
    shares = [0.9, 0.9]
    monkeypatch.setattr(tune.Waiting, "share", lambda self: shares.pop(0))
    (found,) = measure([SHORT])
    assert found.disturbed and found.answer == "blocks" and not shares
    shares += [0.9, 0.1, 0.1]  # undisturbed when tried again
    (found,) = measure([SHORT])
    assert not found.disturbed and found.answer == "mixed" and not shares


def test_the_command_keeps_what_it_shows(monkeypatch, cache, lmlab):
    answers = ways.defaults() | {SHORT: "mixed"}
    found = [tune.Measured(name, {answers[name]: 0.001}, answers[name], name == "gate fp32") for name in answers]
    monkeypatch.setattr(tune, "measure", lambda: iter(found))
    monkeypatch.setattr(tune, "crowd", lambda: 0.1)
    shown = lmlab("doctor", "--tune")
    assert shown.code == 0, shown.err
    assert "mixed 1.00" in shown.out and "1 answered otherwise than by default" in shown.out
    assert "1 disturbed by other programs" in shown.out
    forget(monkeypatch)
    assert ways.in_force() == answers
    assert "1 answered otherwise" in lmlab("doctor").out


def test_the_command_measures_nothing_that_it_cannot_keep(monkeypatch, tmp_path, lmlab):
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tune, "crowd", lambda: pytest.fail("measured"))
    shown = lmlab("doctor", "--tune")
    assert shown.code == 2 and "cannot be kept" in shown.err and "LMLAB_CACHE" in shown.err


def test_who_measures_at_the_same_time_keeps_the_answers_of_others(cache):
    """Each reads and writes the file many times; without a lock one loses what another wrote."""
    pytest.importorskip("fcntl", reason="no locks on this system")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda n: update_json(ways.place_of_answers(), lambda known: {**known, str(n): n}), range(60)))
    assert read_json(ways.place_of_answers()) == {str(n): n for n in range(60)}


def test_answers_are_kept_where_the_lock_is_somebody_elses(cache):
    place = ways.place_of_answers()
    place.parent.mkdir(parents=True, exist_ok=True)
    place.with_name(f".{place.name}.lock").mkdir()  # cannot be opened, whoever runs the test
    update_json(place, lambda known: {**known, "a": 1})
    update_json(place, lambda known: {**known, "b": 2})
    assert read_json(place) == {"a": 1, "b": 2}


def test_the_command_measures_nothing_on_a_busy_machine(monkeypatch, cache, lmlab):
    monkeypatch.setattr(tune, "measure", lambda: pytest.fail("measured"))
    monkeypatch.setattr(tune, "crowd", lambda: 1.5)
    shown = lmlab("doctor", "--tune")
    assert shown.code == 2 and "1.5 threads wait" in shown.err and not cache.exists()


def test_threads_that_wait_are_seen(monkeypatch):
    looks = [threads.Look(0.0, 1.0, 0.0, 5.0), threads.Look(2.0, 1.1, 1.8, 6.9)]
    monkeypatch.setattr(threads, "_look", lambda: looks.pop(0))
    assert tune.crowd(0.0) == pytest.approx(0.9)
    monkeypatch.setattr(threads, "_look", lambda: None)
    assert tune.crowd(0.0) == 0


def test_runs_are_found_where_there_are_any():
    documents = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1]])
    starts, stops = document_starts(documents), document_stops(documents)
    for end, causal in ((None, True), (stops, False)):
        plan = plan_runs(2, 6, 6, starts, end, causal)
        assert plan is not None and plan.packed and plan.mean == 12 / 5
        spans = [(run.rows.start, run.start, run.stop) for run in plan.runs]
        assert spans == [(0, 0, 3), (0, 3, 5), (0, 5, 6), (1, 0, 1), (1, 1, 6)]
    one = plan_runs(2, 6, 6, torch.zeros(2, 6, dtype=torch.long), None, True)
    assert one is not None and not one.packed and [(run.rows, run.stop) for run in one.runs] == [(slice(0, 2), 6)]
    window = Visibility(6, 6).within(3, torch.device("cpu"))
    assert plan_runs(2, 6, 6, window.starts_BT, None, True) is None
    behind = plan_runs(2, 2, 6, None, None, True)
    assert behind is not None and [(run.first, run.last, run.causal) for run in behind.earlier] == [(0, 4, False)]


def steps(node):
    """Names of the nodes that a gradient goes through: the last one alone may be a view, whatever comes before."""
    found = []
    while node is not None:
        found.append(node.name())
        node = node.next_functions[0][0] if node.next_functions else None
    return found


def test_every_way_of_gates_and_experts_gives_the_same(cache):
    generator = torch.Generator().manual_seed(0)
    gate, up, down = (
        torch.randn(shape, generator=generator).requires_grad_() for shape in ((30, 16), (30, 16), (8, 16))
    )
    x, gate_up, outward = (
        torch.randn(shape, generator=generator).requires_grad_() for shape in ((30, 8), (4, 32, 8), (4, 8, 16))
    )
    config = MoEConfig(num_experts=4, top_k=2, expert_hidden_size=16)
    weights, indices = torch.rand(30, 4, generator=generator).softmax(-1).topk(2)

    def by(question, answer):
        with ways.using({question: answer}):
            if question.startswith("gate"):
                inputs, out = (gate, up, down), gated_product(gate, up, down, "silu")
            else:
                inputs = (x, gate_up, outward)
                out = run_experts(x, pairs_of_tokens(weights, indices, config), gate_up, outward)
            return steps(out.grad_fn), out, *torch.autograd.grad(out.square().sum(), inputs)

    for question in ("gate fp32", "experts fp32"):
        (name, *first), *others = (by(question, answer) for answer in ways.QUESTIONS[question].ways)
        assert any(name != other for other, *_ in others)  # or nothing is compared
        for _, *other in others:
            for a, b in zip(first, other, strict=True):
                torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)
