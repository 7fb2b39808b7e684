"""The user's mistakes: one clear sentence, exit code 2, earlier work intact."""

from __future__ import annotations

import contextlib
import gzip
import os
import signal
import time
from pathlib import Path

import pytest
from filelock import FileLock

from lmlab.config import Config, validate
from lmlab.data import Tokenizer
from lmlab.errors import UserError, did_you_mean
from lmlab.files import read_json
from lmlab.runs import Recipe


def _set(*path_and_value):
    *path, value = path_and_value

    def change(data):
        target = data
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return change


def _delete(*path):
    def change(data):
        target = data
        for key in path[:-1]:
            target = target[key]
        del target[path[-1]]

    return change


CASES = {
    "unknown key at the top": (_set("sead", 1), ["unknown key 'sead'", "Did you mean 'seed'"]),
    "unknown key in a stage": (
        _set("stages", "tokenizer", "vocab_sise", 300),
        ["vocab_sise", "Did you mean 'vocab_size'", "tokenizer"],
    ),
    "unknown key deep in a stage": (
        _set("stages", "model", "trainer", "step", 5),
        ["trainer.step", "Did you mean 'steps'"],
    ),
    "unknown key of a source": (_set("stages", "documents", "sources", 0, "pth", "x"), ["pth", "Did you mean 'path'"]),
    "unknown kind of stage": (
        _set("stages", "model", "kind", "trian"),
        ["unknown kind of stage 'trian'", "Did you mean 'train'"],
    ),
    "no kind": (_delete("stages", "model", "kind"), ["stage 'model'", "'kind' is required"]),
    "missing key": (_delete("stages", "model", "seq_len"), ["'seq_len' is required"]),
    "wrong type": (_set("stages", "tokenizer", "vocab_size", "many"), ["vocab_size", "integer", "'many'"]),
    "value out of range": (_set("stages", "documents", "heldout_fraction", 1.5), ["heldout_fraction", "less than 1"]),
    "input that is no stage": (
        _set("stages", "tokens", "tokenizer", "tokeniser"),
        ["tokenizer: 'tokeniser'", "Did you mean 'tokenizer'"],
    ),
    "missing source folder": (
        _set("stages", "documents", "sources", 0, "path", "/no/such/folder"),
        ["/no/such/folder", "does not exist"],
    ),
    "seq_len beyond max_seq_len": (_set("stages", "model", "seq_len", 512), ["seq_len 512", "max_seq_len 256"]),
    "width not divisible": (_set("stages", "model", "model", "num_heads", 3), ["d_model 32", "num_heads 3"]),
    "batch not divisible": (
        _set("stages", "model", "trainer", "micro_batch_size", 3),
        ["batch_size 4", "micro_batch_size 3"],
    ),
    "no stages": (_set("stages", {}), ["no stages"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_recipe_is_refused_before_any_work(lmlab, recipe, tmp_path, case):
    change, expected = CASES[case]
    shown = lmlab("run", recipe(change), "--out", tmp_path / "run")
    assert shown.code == 2
    for text in expected:
        assert text in shown.err
    assert not list((tmp_path / "run").glob("*/stage.json"))


def test_keys_that_are_known_are_listed_once():
    with pytest.raises(UserError) as found:
        validate(_Settings, {"qqq": 1, "www": 2, "eee": 3, "promt": "x", "inner": {"zzz": 1}}, "line 1")
    assert found.value.message.splitlines() == [
        "line 1: 3 problems:",
        "  - unknown key 'inner.zzz'. Known: alpha.",
        "  - unknown keys 'qqq', 'www', 'eee'. Known: inner, prompt.",
        "  - unknown key 'promt'. Did you mean 'prompt'?",
    ]


class _Inner(Config):
    alpha: int = 1


class _Settings(Config):
    prompt: str = ""
    inner: _Inner = _Inner()


def test_several_problems_are_shown_at_once(lmlab, recipe, tmp_path):
    def change(data):
        data["stages"]["model"]["trainer"] |= {"steps": -1, "batch": 3}

    shown = lmlab("run", recipe(change), "--out", tmp_path / "run")
    assert shown.code == 2
    assert "2 problems" in shown.err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [1", ["line", "not valid YAML"]),
        ("- a\n- b\n", ["must hold a mapping"]),
        ("name: a\nname: b\n", ["'name' appears twice", "line 2"]),
    ],
)
def test_broken_yaml_is_refused_with_its_place(lmlab, tmp_path, text, expected):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    shown = lmlab("run", path)
    assert shown.code == 2
    for part in expected:
        assert part in shown.err


def test_a_missing_recipe_is_named(lmlab, tmp_path):
    shown = lmlab("run", tmp_path / "none.yaml")
    assert shown.code == 2
    assert "none.yaml" in shown.err


def test_a_recipe_extends_another(recipe, tmp_path):
    base = recipe()
    (tmp_path / "more.yaml").write_text(f"""
extends: {base.name}
description: more
stages:
  tokenizer: {{vocab_size: 310}}
  evaluation: null
  samples: {{kind: baselines, documents: documents, task: questions}}
  more_tokens: {{kind: tokenize, documents: documents, tokenizer: tokenizer}}
""")
    one, more = Recipe.load(base), Recipe.load(tmp_path / "more.yaml", ["more_tokens.split=heldout"])
    names = [each.name for each in one.stages]
    expected = [name for name in names if name not in ("evaluation", "report")] + ["more_tokens", "report"]
    assert [each.name for each in more.stages] == expected  # the report reads all stages, so it stays last
    stages = {each.name: each for each in more.stages}
    assert (more.name, more.description) == (one.name, "more")
    assert stages["tokenizer"].config.vocab_size == 310 and stages["more_tokens"].config.split == "heldout"
    assert stages["samples"].kind == "baselines"
    before = {each.name: each.config for each in one.stages}
    assert stages["documents"].config == before["documents"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("extends: none.yaml", ["more.yaml", "no such file", "none.yaml"]),
        ("extends: [a, b]", ["more.yaml", "extends", "one recipe"]),
        ("extends: more.yaml", ["more.yaml", "extends itself"]),
        (
            "extends: small.yaml\nstages: {evalation: null}",
            ["more.yaml", "no stage 'evalation'", "Did you mean 'evaluation'"],
        ),
        (
            "extends: small.yaml\nstages: {model: {trainer: {step: 5}}}",
            ["more.yaml", "trainer.step", "Did you mean 'steps'"],
        ),
        ("extends: small.yaml\nstages: {other: {knd: train}}", ["more.yaml", "stage 'other'", "'kind' is required"]),
        ("extends: small.yaml\nstages: [a]", ["more.yaml", "stages"]),
        ("extends: small.yaml\nstages: {model: 3}", ["more.yaml", "stages.model"]),
    ],
)
def test_a_wrong_extension_is_refused(lmlab, recipe, tmp_path, text, expected):
    recipe()
    (tmp_path / "more.yaml").write_text(text)
    shown = lmlab("run", tmp_path / "more.yaml", "--out", tmp_path / "run")
    assert shown.code == 2
    for part in expected:
        assert part in shown.err


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.trainer.stepz=3", "Did you mean 'steps'"),
        ("modle.trainer.steps=3", "Did you mean 'model'"),
        ("model.trainer.steps", "expected KEY=VALUE"),
        ("model.trainer.steps.more=3", "has no key"),
    ],
)
def test_a_wrong_override_is_refused(lmlab, recipe, tmp_path, override, expected):
    shown = lmlab("run", recipe(), "--out", tmp_path / "run", "--set", override)
    assert shown.code == 2
    assert expected in shown.err


def test_an_empty_corpus_is_refused(lmlab, recipe, tmp_path):
    (tmp_path / "empty").mkdir()
    shown = lmlab(
        "run",
        recipe(_set("stages", "documents", "sources", 0, "path", str(tmp_path / "empty"))),
        "--out",
        tmp_path / "run",
    )
    assert shown.code == 2
    assert "corpus is empty" in shown.err


def test_a_non_utf8_file_is_named_and_kept_on_request(lmlab, recipe, library, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for source in library.glob("*.py"):
        (folder / f"{source.stem}.txt").write_bytes(source.read_bytes())
    (folder / "latin.txt").write_bytes("café".encode("latin-1") * 100)
    sources = [{"kind": "text", "path": str(folder)}]
    path = recipe(_set("stages", "documents", "sources", sources), until="documents")
    shown = lmlab("run", path, "--out", tmp_path / "run")
    assert shown.code == 2 and "latin.txt' is damaged: byte 3 is not UTF-8" in shown.err
    keep = ("--redo", "--set", "documents.sources.0.damaged=keep")
    shown = lmlab("run", path, *keep, "--out", tmp_path / "run")
    assert shown.code == 0 and "warning: " in shown.err and "latin.txt" in shown.err


def test_too_many_unreadable_files_stop_the_work(lmlab, recipe, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9 " * 100)
    sources = [{"kind": "text", "path": str(tmp_path / "bad.txt")}]
    shown = lmlab("run", recipe(_set("stages", "documents", "sources", sources)), "--out", tmp_path / "run")
    assert shown.code == 2
    assert "not UTF-8" in shown.err


def test_an_output_path_that_is_a_file_is_refused(lmlab, recipe, tmp_path):
    (tmp_path / "file").write_text("mine")
    shown = lmlab("run", recipe(), "--out", tmp_path / "file")
    assert shown.code == 2
    assert "--out" in shown.err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/sys").exists(), reason="root may write everywhere here")
def test_a_read_only_directory_is_refused(lmlab, recipe):
    shown = lmlab("run", recipe(), "--out", "/proc/sys/lmlab-run")
    assert shown.code == 2
    assert "/proc/sys" in shown.err


def test_a_full_disk_is_said_and_earlier_stages_stay(forkserver, recipe, tmp_path):
    """A limit on the size of files stands for the full disk: the write fails half-way."""
    out = tmp_path / "run"
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000)); from lmlab.cli import main; main()"
    )
    (tmp_path / "limited.py").write_text(script)
    process = forkserver.run("run", recipe(until="tokenizer"), "--out", out, script=tmp_path / "limited.py")
    assert process.returncode in (1, 2)
    assert "Traceback" not in process.stderr
    assert "error:" in process.stderr
    assert not list(out.rglob("*.tmp"))
    assert not (out / "documents" / "train.jsonl").exists()


def test_two_processes_do_not_share_a_run(lmlab, recipe, tmp_path):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        shown = lmlab("run", recipe(), "--out", tmp_path / "run")
    assert shown.code == 2
    assert "Another process" in shown.err


@pytest.fixture
def interrupted(lmlab, recipe, tmp_path):
    """A run whose training has two checkpoints and is not done."""
    out = tmp_path / "run"
    path = recipe(until="model")
    assert lmlab("run", path, "--out", out).code == 0
    record = out / "model" / "stage.json"
    record.write_text(record.read_text().replace('"state": "done"', '"state": "unfinished"'))
    saved = sorted((out / "model" / "checkpoints").glob("step-*"))
    assert len(saved) == 2
    return path, out, saved


def _damage(checkpoint):
    (weights,) = checkpoint.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-7])


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_goes_on(lmlab, interrupted):
    path, out, (before, newest) = interrupted
    weights = (out / "model" / "model" / "model.safetensors").read_bytes()
    _damage(newest)
    shown = lmlab("run", path, "--out", out)
    assert shown.code == 0
    told = " ".join((shown.out + shown.err).split())
    for text in (newest.name, "damaged", "set aside", f"of step {int(before.name.removeprefix('step-'))}"):
        assert text in told
    assert newest.with_name(f"{newest.name}.damaged").is_dir()
    assert (out / "model" / "model" / "model.safetensors").read_bytes() == weights


def test_damaged_checkpoints_alone_are_an_error_that_names_them(lmlab, interrupted):
    path, out, saved = interrupted
    for each in saved:
        _damage(each)
    shown = lmlab("run", path, "--out", out)
    assert shown.code == 1
    told = " ".join(shown.err.split())
    for text in ("None of the 2 checkpoints", str(saved[-1]), "begin anew at step 0"):
        assert text in told
    assert sorted((out / "model" / "checkpoints").glob("step-*")) == saved


def test_a_corrupt_shard_is_named(lmlab, recipe, tmp_path):
    out = tmp_path / "run"
    assert lmlab("run", recipe(until="tokens"), "--out", out).code == 0
    shard = out / "tokens" / "00000.tokens.npy"
    shard.write_bytes(shard.read_bytes()[:-100])
    shown = lmlab("run", recipe(until="model"), "--out", out)
    assert shown.code == 2
    assert "00000.tokens.npy" in shown.err
    assert read_json(out / "tokens" / "stage.json")["state"] == "done"


def test_a_changed_source_file_is_named(lmlab, recipe, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.txt").write_text(f"{name} and words " * 50)
    sources = [{"kind": "text", "path": str(folder)}]
    path = recipe(_set("stages", "documents", "sources", sources), until="tokens")
    settings = ("--set", "documents.near_duplicate_threshold=null", "--set", "documents.heldout_fraction=0")
    assert lmlab("run", path, "--out", tmp_path / "run", *settings).code == 0
    (folder / "b.txt").write_text("other words " * 60)
    (folder / "c.txt").unlink()
    (folder / "d.txt").write_text("d and words " * 50)
    shown = lmlab("run", path, "--out", tmp_path / "run", *settings)
    assert shown.code == 2
    for name, what in (("b", "has changed"), ("c", "is not read any more"), ("d", "is new")):
        assert f"'{folder}/{name}.txt' {what}" in shown.err
    assert "a.txt" not in shown.err


def _has_open(pid: int, path: Path) -> bool:
    """Whether a process reads ``path`` now. Its files are opened and closed while they are listed here."""
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"{folder}/{name}") == str(path):
                return True
    return False


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to see when the file is being read")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_without_stages_is_stopped_by_a_sentence_too(forkserver, tmp_path, number):
    path = tmp_path / "long.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "words"}\n' * 5_000_000, 1))
    (process,) = forkserver.start("data", "inspect", path)
    while not _has_open(process.pid, path):
        assert process.poll() is None, process.read_error()
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopped: Interrupted." in err and "Traceback" not in err and "Aborted" not in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("generate", "x", "--model", "nowhere"), "nothing at 'nowhere', where a model is needed"),
        (("eval", "--model", "nowhere"), "Nothing to measure"),
        (("eval", "--model", "nowhere", "--task", "none.jsonl"), "nowhere"),
        (("report", "nowhere"), "not the directory of a run"),
        (("tokenize", "no/such/*.txt"), "matches no file"),
        (("train", "none.yaml"), "none.yaml"),
        (("unknown-command",), "unknown-command"),
    ],
)
def test_wrong_arguments_of_commands(lmlab, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    shown = lmlab(*arguments)
    assert shown.code == 2
    assert expected in shown.err


def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch, lmlab):
    """`lmlab convert "$SOURCE" "$TARGET"` with a variable that is not set wrote into the current folder."""
    monkeypatch.chdir(tmp_path)
    for command in ("convert", "", "x"), ("convert", "x", ""), ("serve", ""), ("olmoe", "trace", "", "t", "--out", "o"):
        found = lmlab(*command)
        assert found.code == 2 and "the path is empty" in found.err
    assert not list(tmp_path.iterdir())


def test_no_command_writes_over_what_it_reads(tmp_path, monkeypatch, lmlab):
    """`lmlab ladder decide runs.csv -o runs.csv` put its table in the place of all measurements."""
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "a.csv"
    kept.write_text("run,n,tokens\n")
    (tmp_path / "link.csv").symlink_to(kept)
    for command in (
        ("ladder", "decide", "a.csv", "-s", "1e9:1T", "-o", "./a.csv"),
        ("ladder", "compare", "b.csv", "a.csv", "-n", "1e9", "-d", "1T", "--output", "link.csv"),
        ("circuits", "find", "--model", "m", "--data", "a.csv", "--out", "a.csv"),
    ):
        found = lmlab(*command)
        assert found.code == 2 and "and would be written over" in found.err, found.err
    assert kept.read_text() == "run,n,tokens\n"


def test_a_prompt_that_is_not_unicode_is_the_users():
    tokenizer = Tokenizer.train(["a text"], 300)
    for call in (tokenizer.encode, tokenizer.encode_prompt, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(UserError, match="is no character"):
            call("a\udcff")


def test_a_list_of_known_names_shows_the_beginnings_of_long_ones():
    told = did_you_mean("absent", ["a" * 100_000, "short"])
    assert told == f"Known: {'a' * 80}..., short."
