"""An agent's memory with one poisoned entry."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lmlab import cli
from lmlab.errors import UserError
from lmlab.methods.corpus_poisoning.attack.crafted import query_digests
from lmlab.methods.corpus_poisoning.config import MemoryConfig
from lmlab.methods.corpus_poisoning.measure.memory import corroborated, memory_rows, nearest_verified
from lmlab.methods.corpus_poisoning.setup import Target

SMALL = {"entries": 100, "length": 8, "evaluations": 200, "k": 5}


@pytest.fixture(scope="module")
def asked(target, small) -> Target:
    return Target.load(target.retriever, str(small), "test")


def test_a_trigger_brings_its_entry_up_and_a_check_of_sources_keeps_it_out(target, asked):
    settings = MemoryConfig(trigger="comet comet comet galaxy galaxy", **SMALL, unverified=0.1)
    rows = {(row.poison, row.rule): row for row in memory_rows(asked, target, settings)}
    assert len(rows) == 6 and {row.entries for row in rows.values()} == {100}
    for poison in ("the trigger itself", "optimized"):
        every, verified, backed = (
            rows[poison, rule] for rule in ("all entries", "verified", "verified or corroborated")
        )
        assert every.triggered > every.others and every.kept == 1.0
        assert verified.triggered == 0 and verified.kept == pytest.approx(0.9)
        assert verified.recall <= every.recall + 1e-9 or verified.kept < 1  # fewer entries, other results
        assert verified.kept <= backed.kept <= 1 and backed.triggered <= every.triggered
    assert rows["optimized", "all entries"].triggered >= 0.5
    everybody = memory_rows(asked, target, settings.model_copy(update={"unverified": 0.0}))
    assert {row.recall for row in everybody} == {everybody[0].recall}  # no honest entry is lost where all are verified
    again = memory_rows(asked, target, settings)
    assert [row.row() for row in again] == [row.row() for row in rows.values()]
    with pytest.raises(UserError, match=r"Of 100 entries a share of 0.999 leaves none that is verified"):
        memory_rows(asked, target, settings.model_copy(update={"unverified": 0.999}))
    with pytest.raises(UserError, match="has 120 documents, not 121"):
        memory_rows(asked, target, settings.model_copy(update={"entries": 121}))


def test_the_attackers_own_questions_are_not_asked(target, asked):
    settings = MemoryConfig(trigger="comet", **{**SMALL, "evaluations": 40}, attack_questions=20)
    notices: list[str] = []
    rows = memory_rows(target, target, settings, notices)
    own = set(query_digests(target.data.queries.texts[:20]))
    left = [digest for digest in query_digests(target.data.queries.texts) if digest not in own]
    assert 0 < rows[0].questions <= len(left) < len(target.data.queries)
    assert notices == [f"{len(target.data.queries) - len(left)} evaluated queries are the attacker's too and left out."]
    with pytest.raises(UserError, match=r"0 are held out") as all_known:
        memory_rows(target, target, settings.model_copy(update={"attack_questions": 500}))
    assert "fewer --attack-questions" in str(all_known.value.remedy)


def test_who_is_near_a_verified_entry_is_corroborated():
    vectors = np.array([[1, 0], [0.9, 0.1], [0.8, 0.2], [0, 1], [0.95, 0.05], [-1, 0]], np.float32)
    verified = np.array([True, True, True, False, False, False])
    nearest = nearest_verified(vectors, verified)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    by_hand = [max(float(unit[a] @ unit[b]) for b in range(3) if a != b) for a in range(6)]
    assert nearest == pytest.approx(by_hand, abs=1e-6)
    assert corroborated(vectors, verified, 0.01).tolist() == [True, True, True, False, True, False]
    assert corroborated(vectors, np.array([True] + [False] * 5), 0.1).tolist() == [True] + [False] * 5


def test_the_command_tells_each_rule(place, small, tmp_path, capsys, monkeypatch):
    arguments = ["memory", "--data", small, "--encoder", place, "--cache", tmp_path, "--precision", "fp32"]
    arguments += ["--trigger", "comet galaxy", "--entries", 60, "--evaluations", 60, "--length", 8]

    def call(*more: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["lmlab", "poison", *map(str, [*arguments, *more])])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    code, out, err = call("--json")
    assert code == 0 and len(json.loads(out)) == 6, err
    code, out, _ = call()
    assert code == 0 and "verified or corroborated" in " ".join(out.split())
    code, _, err = call("--trigger", " ")
    assert code == 2 and "the trigger holds no word" in err
