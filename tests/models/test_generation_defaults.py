"""What `generation_config.json` says is what a model is asked for; the penalty is that of `transformers`."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from typer.testing import CliRunner

from lmlab.commands.models import app
from lmlab.errors import UserError
from lmlab.models import GenerationConfig, generate, generation_defaults, save_pretrained
from lmlab.models.generation.defaults import end_token_ids
from lmlab.models.generation.sampling import penalize


def write(directory, **settings):
    (directory / "generation_config.json").write_text(json.dumps(settings))


def test_the_penalty_is_that_of_transformers():
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 3
    held = torch.tensor([3, 7, 7, 41])
    expected = transformers.RepetitionPenaltyLogitsProcessor(1.7)(held[None], logits[None].clone())[0]
    penalize(logits, held, 1.7)
    assert torch.equal(logits, expected)


def test_greedy_texts_with_a_penalty_are_those_of_transformers(make_model, tmp_path):
    model = make_model("llama", vocab_size=50, max_seq_len=64)
    save_pretrained(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    prompts = [[3, 9, 9, 4], [17, 2, 30, 8]]
    for penalty in (1.0, 1.3, 4.0):
        out = theirs.generate(
            torch.tensor(prompts),
            attention_mask=torch.ones(2, 4, dtype=torch.long),
            max_new_tokens=20,
            do_sample=False,
            repetition_penalty=penalty,
            eos_token_id=None,
            pad_token_id=0,
        )
        config = GenerationConfig(max_new_tokens=20, temperature=0, repetition_penalty=penalty)
        assert [each[0].ids for each in generate(model, prompts, config)] == out[:, 4:].tolist()


def test_defaults_are_read_and_those_without_effect_are_left(tmp_path):
    assert generation_defaults(tmp_path) == {}
    write(tmp_path, temperature=0.6, top_k=20, top_p=0.9, repetition_penalty=1.1, max_new_tokens=7, num_beams=4)
    assert generation_defaults(tmp_path) == {
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
        "max_new_tokens": 7,
    }
    write(tmp_path, do_sample=False, temperature=0.6, top_k=0, eos_token_id=[2, 5])
    assert generation_defaults(tmp_path) == {"temperature": 0.0, "top_k": None}
    assert end_token_ids(tmp_path) == (2, 5)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        '{"temperature": "hot"}',
        '{"eos_token_id": "x"}',
        '{"top_p": 7}',
        '{"do_sample": "no"}',
        '{"top_k": -1}',
    ],
)
def test_malformed_defaults_are_a_sentence_that_names_the_file(content, tmp_path):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(UserError, match="generation_config"):
        generation_defaults(tmp_path)


def test_the_command_honors_them_unless_told_otherwise(make_model, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    save_pretrained(make_model("llama", vocab_size=50, max_seq_len=64), tmp_path)
    vocabulary = {chr(97 + i) if i < 26 else f"<{i}>": i for i in range(50)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<49>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<48>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<48>"}))
    write(tmp_path, do_sample=False, max_new_tokens=3, eos_token_id=48)

    def run(*options):
        result = CliRunner().invoke(app, ["generate", "a b c", "--model", str(tmp_path), "--json", *options])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)["ids"]

    greedy = run()
    assert len(greedy) == 3
    assert run("--max-new-tokens", "5")[:3] == greedy
    assert run("--seed", "1") == greedy
    assert len({tuple(run("--temperature", "3", "--seed", str(seed))) for seed in range(4)}) > 1
