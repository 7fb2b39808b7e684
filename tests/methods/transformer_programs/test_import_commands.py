"""Every command on what was imported: a run of the reference, and the text that it writes."""

from __future__ import annotations

import functools
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_import_texts import Text, reference_network

from lmlab.errors import UserError
from lmlab.files import read_mapping
from lmlab.methods.transformer_programs.network.convert import to_program
from lmlab.methods.transformer_programs.tasks import load, rasp


@pytest.fixture(scope="module")
def run(ground_truth: Path) -> Iterator[Path]:
    """A run whose data are drawn once for all commands."""
    with pytest.MonkeyPatch.context() as patch:
        once = functools.cache(rasp.generate)
        patch.setattr(rasp, "generate", once)
        patch.setattr(load, "generate", once)
        yield ground_truth / "checkpoints" / "hist"


def test_a_run_of_the_reference(lmlab: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    program, short, exported = tmp_path / "program", tmp_path / "short", tmp_path / "exported"
    done = lmlab("programs", "import", run, "--out", program)
    assert done.code == 0, done.err
    manifest = read_mapping(program / "manifest.json")
    assert manifest["faithful"] and manifest["verification"]["sequences"] == 2000
    # its data are drawn again as its arguments say, which are not the usual ones
    drawn = read_mapping(program / "program.json")["drawn"]
    assert drawn["data_seed"] == 3
    assert "Equal on 300 sequences" in told(lmlab("programs", "verify", program, "--run", run, "--examples", "300"))
    assert " accuracy: 99.44 % sequence" in told(lmlab("programs", "evaluate", program))
    assert "<s> 2 1 2 1" in told(lmlab("programs", "run", program, "3 1 3 0"))
    assert lmlab("programs", "minimize", program, "--examples", "300", "--out", short).code == 0
    against = lmlab("programs", "verify", short, "--against", program, "--exhaustive", "2")
    assert against.code in (0, 1) and "Traceback" not in against.err
    page = tmp_path / "page.html"
    assert lmlab("programs", "explain", program, "--examples", "20", "--out", page).code == 0
    assert "num_attn_0_0_outputs" in page.read_text()
    written = lmlab("programs", "export", run, "--exhaustive", "0", "--out", exported)
    assert written.code == 0 and "accuracy on test: 99.44 %" in told(written)
    assert read_mapping(exported / "manifest.json")["faithful"]


def told(outcome: Any) -> str:
    return " ".join((outcome.out + outcome.err).split())


@pytest.mark.parametrize("seed", [1, 4])
def test_a_text_of_the_reference(lmlab: Callable[..., Any], tmp_path: Path, seed: int) -> None:
    network = reference_network(seed)
    source = Text(to_program(network), tmp_path, seed).write()
    program, short = tmp_path / "program", tmp_path / "short"
    assert lmlab("programs", "import", source, "--out", program).code == 0
    assert "Give --data or --task" not in told(lmlab("programs", "run", program, "a b"))
    unsaid = lmlab("programs", "minimize", program, "--out", short)
    assert unsaid.code == 2 and "Unknown task 'x'" in told(unsaid), told(unsaid)
    words = [word for word in network.spec.vocabulary if word != "<pad>"]
    answers = {"label": "x"} if network.spec.pool_outputs else {"labels": ["x", "y"]}
    (tmp_path / "data.jsonl").write_text((json.dumps({"tokens": words[:2], **answers}) + "\n") * 3)
    for command in ("minimize", "explain", "evaluate"):
        out = () if command == "evaluate" else ("--out", tmp_path / command)
        done = lmlab("programs", command, program, "--data", tmp_path / "data.jsonl", *out)
        assert done.code == 0, told(done)
    same = lmlab("programs", "verify", program, "--against", program, "--data", tmp_path / "data.jsonl")
    assert same.code == 0 and "Equal on 3 sequences" in told(same)


class _Runs:
    """A pickle that runs something where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_damaged_and_hostile_runs_are_refused(lmlab: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    arguments, ran = json.loads((run / "args.json").read_text()), tmp_path / "ran"
    weights = dict(np.load(run / "model.npz"))

    def prepared(name: str, text: str | None = None, copied: bool = True, **change: Any) -> Path:
        place = tmp_path / name
        place.mkdir()
        if copied:
            shutil.copy(run / "model.npz", place)
        (place / "args.json").write_text(json.dumps({**arguments, **change}) if text is None else text)
        return place

    (tmp_path / "empty").mkdir()
    cut = prepared("cut")
    (cut / "model.npz").write_bytes((run / "model.npz").read_bytes()[:3000])
    pickled = prepared("pickled", copied=False)
    (pickled / "model.pt").write_bytes(pickle.dumps(_Runs(ran)))
    objects = prepared("objects", copied=False)
    hidden = np.empty(1, dtype=object)
    hidden[0] = _Runs(ran)
    np.savez(objects / "model.npz", **{**weights, "unembed.W_U": hidden})
    lacking = prepared("lacking", copied=False)
    np.savez(lacking / "model.npz", **{name: each for name, each in weights.items() if name != "unembed.W_U"})
    unsized = {name: value for name, value in arguments.items() if name != "vocab_size"}
    for place, message in (
        (tmp_path / "empty", "args.json"),
        (prepared("list", "[1]"), "args.json"),
        (prepared("broken", "{"), "args.json"),
        (prepared("weightless", copied=False), "has neither model.pt nor model.npz"),
        (cut, "cut"),
        (pickled, "pickled"),
        (objects, "objects"),
        (lacking, "unembed.W_U"),
        (prepared("unsized", json.dumps(unsized)), "does not say 'vocab_size'"),
        (prepared("many", dataset_size=10**12), "dataset_size is 1000000000000"),
        (prepared("long", max_length=10**6), "up to 1,000,000 places are drawn"),
        (prepared("negative", max_length=-3), "max_length is -3"),
        (prepared("other", dataset="conll_ner"), "Import it with --vocabulary"),
    ):
        for command in ("import", "export"):
            done = lmlab("programs", command, place, "--out", tmp_path / "out")
            assert done.code == 2, (place, command, told(done))
            assert "Traceback" not in done.err
        imported = lmlab("programs", "import", place, "--out", tmp_path / "out")
        assert message in told(imported), (place, told(imported))
    assert not ran.exists() and not (tmp_path / "out").exists()


def test_networks_and_rules_of_another_training_are_named(
    lmlab: Callable[..., Any], ground_truth: Path, run: Path, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    assert lmlab("programs", "import", run, "--out", program).code == 0
    other = lmlab("programs", "verify", program, "--run", ground_truth / "checkpoints" / "reverse")
    assert other.code == 2 and "they are not of one training" in told(other), told(other)
    saved = read_mapping(program / "program.json")
    for drawn, message in (
        ({"data": "/etc/passwd"}, "'drawn' of the program's file"),
        ({"size": 10**9}, "too many"),
        ({"vocab_size": 10**9}, "from 1,000,000,000 words: too many"),
        ({"size": 10**6, "max_length": 10**4}, "up to 10,000 places"),
        ("many", "'drawn' of the program's file"),
    ):
        (program / "program.json").write_text(json.dumps({**saved, "drawn": drawn}))
        done = lmlab("programs", "evaluate", program)
        assert done.code == 2 and message in told(done), told(done)


def test_what_a_program_asks_to_draw_is_bounded_as_a_whole() -> None:
    assert load.data_of({"task": "hist", "drawn": {"size": 10**6, "max_length": 30}}, None).max_length == 30
    for drawn in ({"size": 10**6, "max_length": 31}, {"vocab_size": 10**6 + 1}, {"size": 10**6 + 1}):
        with pytest.raises(UserError, match="too many"):
            load.data_of({"task": "hist", "drawn": drawn}, None)
