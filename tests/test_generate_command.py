"""`lmlab generate`, `lmlab chat` and adapters on the command line, with a model of a few weights and a real
tokenizer.
"""

from __future__ import annotations

import io
import json
import shutil

import pytest
import torch
import yaml

from lmlab.data import Tokenizer
from lmlab.models import (
    GenerationConfig,
    LoRAConfig,
    ModelConfig,
    Transformer,
    add_lora,
    from_pretrained,
    generate,
    save_lora,
    save_pretrained,
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.train(["def f(x):\n    return x\n", "Grüße, 世界"], 300)
    tokenizer.save(directory)
    model = Transformer(
        ModelConfig(
            vocab_size=tokenizer.vocab_size,
            num_layers=2,
            d_model=32,
            num_heads=4,
            d_ff=64,
            max_seq_len=64,
            init_std=0.3,
        )
    )
    save_pretrained(model.initialize(0), directory)
    return directory


@pytest.fixture
def adapter(directory, tmp_path):
    model = from_pretrained(directory)
    add_lora(model, LoRAConfig(rank=2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    save_lora(model, tmp_path / "adapter")
    return tmp_path / "adapter"


def expected(directory, prompt, **settings):
    model, tokenizer = from_pretrained(directory), Tokenizer.load(directory)
    config = GenerationConfig(**{"eos_ids": (tokenizer.eos_id,), "max_new_tokens": 12, "temperature": 0} | settings)
    return generate(model, [tokenizer.encode_prompt(prompt)], config, decode=tokenizer.decode)[0]


GREEDY = ("--temperature", "0", "--max-new-tokens", "12")


def test_a_prompt_is_continued(lmlab, directory):
    from lmlab.terminal import printable

    shown = lmlab("generate", "--model", directory, "def ", *GREEDY)
    assert (shown.code, shown.out) == (0, "def " + printable(expected(directory, "def ")[0].text) + "\n")


def test_a_prompt_comes_from_standard_input(lmlab, directory, monkeypatch):
    direct = lmlab("generate", "--model", directory, "def ", *GREEDY).out
    monkeypatch.setattr("sys.stdin", io.StringIO("def "))
    assert lmlab("generate", "--model", directory, "-", *GREEDY).out == direct


def test_json_lines_hold_all_samples_with_log_probabilities(lmlab, directory):
    arguments = (
        "--max-new-tokens",
        "12",
        "--num-samples",
        "2",
        "--temperature",
        "1",
        "--top-p",
        "1",
        "--seed",
        "7",
        "--json",
    )
    rows = [
        json.loads(line) for line in lmlab("generate", "--model", directory, "def ", "x", *arguments).out.splitlines()
    ]
    assert [row["prompt"] for row in rows] == ["def ", "def ", "x", "x"]
    for prompt, found in (("def ", rows[:2]), ("x", rows[2:])):
        wanted = expected(directory, prompt, num_samples=2, temperature=1.0, top_p=1.0, seed=7)
        assert [row["ids"] for row in found] == [each.ids for each in wanted]
        assert [row["completion"] for row in found] == [each.text for each in wanted]
        for row, each in zip(found, wanted, strict=True):
            assert row["log_probs"] == pytest.approx(each.log_probs, abs=1e-4)


def test_a_stop_string_ends_the_text(lmlab, directory):
    (whole,) = expected(directory, "def ")
    stop = whole.text[2:4]
    (row,) = [
        json.loads(line)
        for line in lmlab("generate", "--model", directory, "def ", *GREEDY, "--stop", stop, "--json").out.splitlines()
    ]
    assert (row["completion"], row["finish_reason"]) == (whole.text[: whole.text.index(stop)], "stop")


def test_adapters_are_folded_in(lmlab, directory, adapter, tmp_path):
    plain = lmlab("generate", "--model", directory, "def ", *GREEDY).out
    adapted = lmlab("generate", "--model", directory, "--adapter", adapter, "def ", *GREEDY).out
    assert adapted != plain
    assert lmlab("convert", directory, tmp_path / "merged", "--adapter", adapter, "--check").code == 0
    assert lmlab("generate", "--model", tmp_path / "merged", "def ", *GREEDY).out == adapted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "x", "--precision", "fp8"), "precision: input should be 'fp32'"),
        (("generate", "x" * 200), "exceeds the model's 64"),
        (("generate", "", "--max-new-tokens", "5"), None),
        (("generate", "x", "--stop", ""), "Stop strings must not be empty"),
        (("generate", "x", "--adapter", "nowhere"), "is not a directory of adapters"),
        (("chat",), "no chat template"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, tuple) else "",
)
def test_wrong_arguments(lmlab, directory, arguments, message):
    shown = lmlab(*arguments, "--model", directory)
    if message is None:  # an empty prompt is the beginning of a document
        assert shown.code == 0
    else:
        assert (shown.code, message in shown.err) == (2, True), shown.err
        assert "Traceback" not in shown.err and not shown.out  # a prompt that is refused is not said


def test_the_stage_draws_as_the_model_s_makers_say_unless_told_otherwise(lmlab, directory, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(directory, copy)
    (copy / "generation_config.json").write_text(json.dumps({"do_sample": False, "max_new_tokens": 4}))
    stage = {"kind": "generate", "model": str(copy), "prompts": ["def f("], "device": "cpu"}
    recipe = tmp_path / "samples.yaml"

    def run(*options, **changes):
        recipe.write_text(yaml.safe_dump({"name": "samples", "stages": {"samples": stage | changes}}))
        done = lmlab("run", recipe, "--out", tmp_path / "run", *options)
        return done, json.loads((tmp_path / "run" / "results.json").read_text())["samples"]

    done, found = run()
    assert done.code == 0 and (found["temperature"], found["top_p"]) == (0.0, 0.95)
    assert found["samples"][0]["completion"] == expected(directory, "def f(", max_new_tokens=4, temperature=0.0)[0].text
    # the value that is the default elsewhere is another setting where it is asked for
    done, _ = run(temperature=0.8)
    assert done.code == 2 and "--redo" in done.err
    assert run("--redo", temperature=0.8)[1]["temperature"] == 0.8
