"""The scripts of examples/ and the code of docs/api.md run, and say what they should."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from lmlab.data import ChatConfig, Tokenizer, chat_tokenizer
from lmlab.evals.long.texts import passages
from lmlab.evals.tasks import olmes
from lmlab.methods.ladder import TaskRegistry, write_table
from lmlab.methods.ladder.tables.reference_data import published_ladder
from lmlab.models import ModelConfig, Transformer, save_pretrained
from tiny_retriever import write_collection, write_retriever

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("LMLAB_SHARED", ROOT.parent / "shared"))


@pytest.fixture
def run(forkserver):
    def call(name, *arguments):
        done = forkserver.run(*arguments, script=ROOT / "examples" / f"{name}.py")
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return call


def shared(*parts):
    place = SHARED.joinpath("data", *parts)
    if not place.exists():
        pytest.skip("the shared data are not there; LMLAB_SHARED names their folder")
    return place


def test_every_method_has_an_example():
    from lmlab.plugins import methods

    assert {each.stem for each in (ROOT / "examples").glob("*.py")} == {*methods(), "first_steps"}


@pytest.mark.slow
def test_first_steps(run, tmp_path):
    told = run("first_steps", tmp_path / "run")
    bits = float(re.search(r"([\d.]+) bits per byte", told)[1])
    assert 0 < bits < 8  # it has learned more than that bytes are not all alike
    assert (tmp_path / "run" / "model" / "model" / "config.json").is_file()


@pytest.mark.slow
def test_edge_pruning_finds_the_known_circuit(run):
    assert "11 of 94 edges, 11 of the 11 known ones" in run("edge_pruning", shared("tracr", "reverse"))


@pytest.mark.slow
def test_ladder_predicts_what_the_large_model_reached(run, tmp_path):
    shared("ladder", "runs")
    table = published_ladder(SHARED)
    write_table(table, tmp_path / "runs.csv")
    found = re.findall(r"(\w+): ([\d.]+)% \[([\d.]+)%, ([\d.]+)%\]", run("ladder", tmp_path / "runs.csv"))
    assert [each[0] for each in found] == ["arc_easy_val_5shot", "hellaswag_val_5shot"]
    large = table["7B-4T"]
    keys = {
        task.name: task.accuracy_keys for task in TaskRegistry.builtin().select(",".join(each[0] for each in found))
    }
    reached = {name: 100 * float(np.mean([large.metrics[key][-1] for key in each])) for name, each in keys.items()}
    for name, middle, low, high in found:
        assert float(low) < float(middle) < float(high)
        # what the 7B model, which it never saw, came to; of intervals for nine in ten, one may be missed by a little
        assert float(low) - 0.5 <= reached[name] <= float(high) + 0.5, name
        assert abs(float(middle) - reached[name]) < 5


@pytest.mark.slow
def test_olmoe_tells_the_load_of_every_layer(run):
    pytest.importorskip("zstandard")
    told = run("olmoe", shared("olmoe", "tiny", "checkpoint"), shared("texts") / "*.jsonl.zst")
    loads = [float(each) for each in re.findall(r"has ([\d.]+) times", told)]
    assert loads and all(1 <= each <= 16 for each in loads)


def test_corpus_poisoning_measures_an_attack_with_and_without_a_gate(run, tmp_path):
    place, data = write_retriever(tmp_path / "encoder"), write_collection(tmp_path / "data", 120, 80)
    told = run("corpus_poisoning", data, data, place)
    found = re.search(r"undefended: (\d) passages, ASR@5 ([\d.]+) %", told)
    behind = re.search(r"behind the gate: (\d) passages, ASR@5 ([\d.]+) %", told)
    assert 0 < int(found[1]) <= 3 and int(behind[1]) <= int(found[1]) and float(behind[2]) <= float(found[2])


def test_tutor_tells_what_of_a_dialogue_is_learned(run):
    told = run("tutor").splitlines()
    assert [line.split()[0] for line in told] == ["read", "read", "learned"]


def test_qurating_chooses_a_third_of_the_words(run):
    pytest.importorskip("pyarrow")
    chosen, modules = map(int, re.match(r"(\d+) of (\d+) modules", run("qurating")).groups())
    assert 0 < chosen < modules


def test_autocompressor_writes_and_reads_vectors(run, tmp_path):
    text = "A model reads a text in segments, and writes a few vectors for each.\n" * 40
    (tmp_path / "text.txt").write_text(text)
    tokenizer = Tokenizer.train([text], 300)
    shape = ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=1, d_model=16, num_heads=2, max_seq_len=256)
    save_pretrained(Transformer(shape).initialize(0), tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    told = run("autocompressor", tmp_path / "model", tmp_path / "text.txt")
    segments = -(-min(300, len(tokenizer.encode_prompt(text))) // 100)
    assert f"in {segments} segments became {8 * segments} vectors" in told and "2 compressions" in told


def test_prolong_measures_a_model_at_each_length(run, tmp_path):
    if olmes.version() is None:
        pytest.skip(f"the package {olmes.PACKAGE} is not installed")
    tokenizer = Tokenizer.train((passage.text for passage in passages()[:60]), 600)
    shape = ModelConfig(vocab_size=600, num_layers=1, d_model=16, num_heads=2, max_seq_len=1024)
    save_pretrained(Transformer(shape).initialize(0), tmp_path)
    tokenizer.save(tmp_path)
    told = run("prolong", tmp_path, 512, 768)
    assert re.findall(r"^(\S+): [\d.]+ at 512 tokens, [\d.]+ at 768 tokens$", told, re.M) == ["json_kv.int", "niah"]


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A folder with what the pages name, a small model in the place of theirs; code is run in it as a reader would type
    it.
    """
    place = tmp_path / "models" / "smollm2"
    tokenizer = chat_tokenizer(Tokenizer.train(["def f(x):\n    return x\n"], 300), ChatConfig(template="tulu"))
    shape = ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=1, d_model=16, num_heads=2, max_seq_len=1024)
    save_pretrained(Transformer(shape).initialize(0), place)
    tokenizer.save(place)
    (tmp_path / "texts.jsonl").write_text('{"id": "a", "text": "def f(x):", "domain": "code", "group": "a"}\n')
    monkeypatch.chdir(tmp_path)

    def type_in(page):
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.S)
        names: dict[str, object] = {}
        for block in blocks:
            exec(compile(block, page, "exec"), names)  # noqa: S102 - our own page
        return blocks, names

    return type_in


def test_the_code_of_the_page_on_python_runs(reader):
    blocks, names = reader("docs/api.md")
    assert len(blocks) >= 3 and isinstance(names["answer"], str) and len(names["scores"]) == 2


def test_the_first_lines_that_a_visitor_reads_run(reader, capsys):
    (block,), names = reader("README.md")
    assert len(block.strip().splitlines()) <= 6
    *_, bits, measured = capsys.readouterr().out.splitlines()
    assert float(bits) == names["model"].bits_per_byte("The capital of France is Paris.") > 0
    assert "bits_per_byte" in measured and "code" in measured


@pytest.mark.slow
def test_transformer_programs_counts(run, tmp_path):
    told = run("transformer_programs", tmp_path / "run")
    assert re.search(r"Equal to the network on [\d,]+ places: True", told) and "def run(tokens" in told
