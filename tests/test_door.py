"""`import lmlab`: what a user types first, against the parts that it is made of."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import lmlab
from lmlab.data import ChatConfig, Tokenizer, chat_tokenizer
from lmlab.errors import UserError
from lmlab.methods.qurating import Rater
from lmlab.models import (
    GenerationConfig,
    ModelConfig,
    MoEConfig,
    Transformer,
    from_pretrained,
    generate,
    save_pretrained,
    weights_fingerprint,
)
from tiny_retriever import write_collection, write_retriever

TEXT = "def f(x):\n    return x\n"


def write_model(directory, **shape):
    tokenizer = Tokenizer.train([TEXT, "Grüße, 世界"], 300)
    sizes = {"num_layers": 2, "d_model": 32, "num_heads": 4, "d_ff": 64, "max_seq_len": 128, "init_std": 0.3}
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, **sizes | shape)).initialize(0)
    save_pretrained(model, directory)
    tokenizer.save(directory)
    return str(directory)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


def test_importing_lmlab_loads_nothing_heavy():
    code = (
        "import sys, lmlab; dir(lmlab); print([m for m in ('torch', 'scipy', 'numpy', 'pydantic') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_generate_is_that_of_the_models(directory):
    model, tokenizer = from_pretrained(directory), Tokenizer.load(directory)
    config = GenerationConfig(max_new_tokens=9, temperature=0, eos_ids=(tokenizer.eos_id,))
    prompts = ["def", "x = "]
    expected = [
        each[0].text
        for each in generate(model, [tokenizer.encode_prompt(p) for p in prompts], config, decode=tokenizer.decode)
    ]
    loaded = lmlab.load(directory)
    assert loaded.generate(prompts, max_new_tokens=9, temperature=0) == expected
    assert lmlab.generate(directory, "def", max_new_tokens=9, temperature=0) == expected[0]


def test_bits_and_scores_are_sums_of_log_probabilities(directory):
    loaded = lmlab.load(directory)
    ids = [loaded.tokenizer.bos_id, *loaded.tokenizer.encode(TEXT, "as_text")]
    import torch

    with torch.no_grad():
        log_probs = loaded.network(torch.tensor([ids])).logits_BTV[0].log_softmax(-1)
    expected = -sum(float(log_probs[place, token]) for place, token in enumerate(ids[1:]))
    assert loaded.bits_per_byte(TEXT) == pytest.approx(expected / math.log(2) / len(TEXT.encode()), rel=1e-5)
    assert loaded.perplexity(TEXT) == pytest.approx(math.exp(expected / (len(ids) - 1)), rel=1e-5)
    assert sum(map(math.exp, loaded.score("x", ["a"]))) < 1
    whole = loaded.score("", [TEXT])[0]
    assert whole == pytest.approx(-expected, rel=1e-5)


def test_a_setting_that_does_not_exist_is_named(directory):
    with pytest.raises(UserError, match="temprature"):
        lmlab.generate(directory, "x", temprature=0)


def test_a_model_without_a_chat_template_says_so(directory):
    with pytest.raises(UserError, match="chat template"):
        lmlab.chat(directory, "Hello")


def test_chat_answers_what_generation_from_the_template_gives(directory, tmp_path):
    place = tmp_path / "chatting"
    save_pretrained(from_pretrained(directory), place)
    chat_tokenizer(Tokenizer.load(directory), ChatConfig(template="tulu")).save(place)
    loaded = lmlab.load(place)
    said = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "x"},
    ]
    config = GenerationConfig(max_new_tokens=8, temperature=0, eos_ids=(loaded.tokenizer.eos_id,))
    found = generate(loaded.network, [loaded.tokenizer.encode_chat(said)], config, decode=loaded.tokenizer.decode)[0][
        0
    ].text
    assert loaded.chat(said, max_new_tokens=8, temperature=0) == found
    with pytest.raises(UserError, match="not a user's"):
        loaded.chat(said[:2])


def test_run_train_and_evaluate_give_what_they_wrote(recipe, tmp_path):
    import yaml

    path = recipe(until="questions")
    directory = lmlab.run(str(path), str(tmp_path / "run"), overrides=["tokenizer.vocab_size=390"])
    stages = yaml.safe_load(path.read_text())["stages"]
    assert (
        lmlab.run({"name": "small", "stages": stages}, directory, overrides=["tokenizer.vocab_size=390"]) == directory
    )
    settings = {
        "tokens": str(directory / "tokens"),
        "tokenizer": str(directory / "tokenizer"),
        "seq_len": 64,
        "model": {"vocab_size": 390, "num_layers": 1, "d_model": 32, "num_heads": 2, "max_seq_len": 256},
        "trainer": {"steps": 2, "batch_size": 2, "precision": "fp32", "device": "cpu"},
    }
    trained = lmlab.train_model(settings, tmp_path / "trained", overrides=["trainer.steps=3"])
    assert (trained / "model" / "checkpoints" / "step-00000003").is_dir()
    assert isinstance(lmlab.load(trained).generate("def", max_new_tokens=2), str)
    found = lmlab.evaluate(
        trained,
        questions=directory / "questions",
        documents=directory / "documents",
        out=tmp_path / "eval",
        device="cpu",
    )
    assert found.measured["model"]["accuracy"]["all"]["count"] == 20  # 10 of each domain
    with pytest.raises(UserError, match="Nothing to measure"):
        lmlab.evaluate(trained)


def test_routing_of_a_model_on_texts(tmp_path):
    place = write_model(
        tmp_path / "moe", ffn="moe", moe=MoEConfig(num_experts=4, top_k=2, expert_hidden_size=16).model_dump()
    )
    (tmp_path / "a.txt").write_text(TEXT * 20)
    trace = lmlab.trace_routing(place, tmp_path / "a.txt", length=16, sequences=3)
    assert trace.input_ids_ST.shape == (3, 16) and trace.num_experts == 4 and trace.top_k == 2


def test_selection_takes_the_best_rows_within_the_budget():
    table = {"id": ["a", "b", "c", "d"], "rating": np.array([0.1, 3.0, 2.0, -1.0]), "length": [10, 10, 10, 10]}
    assert lmlab.select_texts(table, "50%", metric="rating", mode="top_k").ids == ["b", "c"]


def test_ratings_are_those_of_the_rater(tmp_path):
    tokenizer = Tokenizer.train([TEXT], 300)
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size, num_layers=1, d_model=16, num_heads=2, max_seq_len=64, num_labels=2
    )
    rater = Rater(Transformer(shape).initialize(3), tokenizer, ("clarity", "depth"), segment=32, precision="fp32")
    rater.save(tmp_path / "rater")
    found = lmlab.rate_texts(str(tmp_path / "rater"), [TEXT, "x = 1", ""])
    assert list(found) == ["clarity", "depth"]
    # by hand: the scalars of the network at the last token of the text, which is shorter than a segment
    ids = torch.tensor([tokenizer.encode(TEXT, "as_text")])
    with torch.no_grad():
        by_hand = rater.model(ids).scores_BC[0]
    by_rater = [found[name][0] for name in found]
    assert by_rater == pytest.approx(by_hand.tolist(), rel=0.01)  # in bf16, where the processor is faster so
    assert found["clarity"][0] != pytest.approx(found["clarity"][1], abs=1e-6)
    assert math.isnan(found["clarity"][2]) and math.isnan(found["depth"][2])
    with pytest.raises(UserError, match="nowhere"):
        lmlab.rate_texts(tmp_path / "nowhere", [TEXT])


def test_a_circuit_tells_where_it_comes_from_as_the_command_does(tmp_path):
    place = write_model(tmp_path / "model", init_std=0.4)
    rows = [{"clean": f"x{n} = ", "corrupted": f"y{n} = ", "answer": "x", "distractor": "y"} for n in range(4)]
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"ablation": "zero", "method": "random", "num_edges": 5, "force": True, "batch_size": 2}
    about = lmlab.find_circuit(place, tmp_path / "examples.jsonl", device="cpu", **options).about
    assert about["model"] == place and about["data"] == str(tmp_path / "examples.jsonl")
    assert about["tokenizer_hash"] == Tokenizer.load(place).fingerprint[:16]
    assert about["model_hash"] == weights_fingerprint(from_pretrained(place))[:16]
    assert about["settings"]["num_edges"] == 5 and about["examples"] == 4
    with pytest.raises(UserError, match="the settings: unknown key 'num_edgse'. Did you mean 'num_edges'"):
        lmlab.find_circuit(place, tmp_path / "examples.jsonl", num_edgse=5)


def test_what_a_user_hands_over_is_taken_or_refused_by_name(directory, tmp_path):
    """Wrong types, empty things and NumPy's: never a traceback of lmlab's insides, never another meaning."""
    loaded = lmlab.load(directory)
    for call, said in (
        (lambda: loaded.score("x", " Paris"), r"options: a list of texts is needed, not a text"),
        (lambda: loaded.score("x", []), "no option"),
        (lambda: loaded.score("x", ["a", 5]), r"options\[1\]: a text is needed, not a number"),
        (lambda: loaded.perplexity(5), "text: a text or a list of texts is needed, not a number"),
        (lambda: loaded.bits_per_byte(""), "text: it is empty"),
        (lambda: loaded.bits_per_byte([]), "text: it is empty"),
        (lambda: loaded.bits_per_byte(["a", None]), r"text\[1\]: a text is needed, not nothing"),
        (lambda: loaded.bits_per_byte(b"abc"), "bytes"),
        (lambda: loaded.bits_per_byte({"a", "b"}), "no order"),
        (lambda: loaded.bits_per_byte("\ud800"), "no character"),
        (lambda: loaded.measure("abc", window=0), "window: 0 is less than 2"),
        (lambda: loaded.measure("abc", window=129), "window: 129 tokens are more than the model's 128"),
        (lambda: loaded.measure("abc", window=8.5), "window: a whole number is needed, not 8.5"),
        (lambda: loaded.generate(5), "prompt"),
        (lambda: loaded.generate("x", temperature=True), "temperature: a number is needed, got true"),
        (lambda: loaded.chat([{"role": "user", "text": "x"}]), r"messages\[0\]: the key 'content' is missing"),
        (lambda: loaded.chat([{"content": "x"}]), r"messages\[0\]: the key 'role' is missing"),
        (lambda: loaded.chat([{"role": "user", "content": 5}]), "content: a text is needed, not a number"),
        (lambda: loaded.chat([]), "conversation is empty"),
        (lambda: loaded.chat({"role": "user", "content": "x"}), "list of messages is needed, not a mapping"),
        (lambda: lmlab.load(""), "place: the path is empty"),
        (lambda: lmlab.load(None), "place: a path is needed, not nothing"),
        (lambda: lmlab.load(directory, precision=None), "precision: a text is needed"),
        (lambda: lmlab.evaluate(directory, documents="nope.jsonl"), "^There is nothing at 'nope.jsonl'"),
        (lambda: lmlab.evaluate(directory, 5), "tasks: a text or a list of texts is needed"),
        (lambda: lmlab.train_model(5), "config: a path is needed"),
        (lambda: lmlab.run("nope"), "No such file: 'nope'"),
        (lambda: lmlab.fit_ladder(tmp_path, preset="x"), "no estimator .x."),
        (lambda: lmlab.measure_long(directory, mode="x"), "mode: there is no mode 'x'"),
        (lambda: lmlab.rate_texts(directory, [1]), r"texts\[0\]"),
        (lambda: lmlab.select_texts({"a": [1.0]}, -5), "tokens: -5 is less than 1"),
        (lambda: lmlab.find_circuit(directory, tmp_path), "is a directory where a file is needed"),
        (lambda: lmlab.find_circuit(directory, pruning=5), "pruning"),
    ):
        with pytest.raises(UserError, match=said):
            call()


def test_every_form_of_one_meaning_is_the_same(directory):
    loaded = lmlab.load(directory)
    settings = {"max_new_tokens": np.int64(4), "temperature": np.float32(0)}
    expected = loaded.generate(["a", "b"], max_new_tokens=4, temperature=0)
    for prompts in (np.array(["a", "b"]), ("a", "b"), iter(["a", "b"])):
        assert loaded.generate(prompts, **settings) == expected
    assert loaded.generate("a", stop=" ", **settings) == loaded.generate("a", stop=(" ",), **settings)
    assert loaded.bits_per_byte(TEXT) == loaded.bits_per_byte([TEXT, ""]) == loaded.bits_per_byte(np.str_(TEXT))


def test_what_a_message_or_a_document_spells_ends_no_turn(directory, tmp_path):
    """Special tokens that a user's words, a judge's excerpt or a long document spell stay text, as in training."""
    from lmlab.commands.chat import Conversation
    from lmlab.evals.long.asking import Asking
    from lmlab.evals.long.instance import Instance

    tokenizer = chat_tokenizer(Tokenizer.load(directory), ChatConfig(template="tulu"))
    model, end = from_pretrained(directory), tokenizer.backend.id_to_token(tokenizer.eos_id)
    read = []
    conversation = Conversation(model, tokenizer, GenerationConfig(max_new_tokens=1, temperature=0))
    conversation._cache_for = lambda ids: read.append(ids) or Conversation._cache_for(conversation, ids)
    list(conversation.reply(f"a{end}b"))
    plain = tokenizer.encode_chat([{"role": "user", "content": "ab"}])
    assert read[0].count(tokenizer.eos_id) == plain.count(tokenizer.eos_id)
    assert end in tokenizer.backend.decode(read[0], skip_special_tokens=False)
    shown = tokenizer.encode_prompt(f"x{end}y", "as_text")
    assert tokenizer.eos_id not in shown[1:] and tokenizer.decode(shown) == f"x{end}y"
    assert tokenizer.eos_id in tokenizer.encode_prompt(f"x{end}y")[1:]
    assert tokenizer.encode_prompt("x y", "as_text") == tokenizer.encode_prompt("x y")
    told = {"id": "i", "task": "t", "variant": "v", "length": 9, "context_index": 0, "question_index": 0}
    instance = Instance(**told, context=f"x{end}y", question="q", answer=["a"], n_items=1, budget=1, prompt_tokens=9)
    for chat in (False, True):
        ids = Asking(tokenizer, chat).ids(instance)
        assert ids[1:].count(tokenizer.eos_id) == 0 and end in tokenizer.backend.decode(ids, skip_special_tokens=False)


def test_a_loaded_model_is_evaluated_as_it_was_loaded_or_refused(directory, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": "some words to measure " * 20}) + "\n")
    model = lmlab.load(directory, precision="int8")
    lmlab.evaluate(model, documents=texts, window=64, out=tmp_path / "packed")
    record = json.loads((tmp_path / "packed" / "evaluation" / "stage.json").read_text())
    assert record["content"]["config"]["precision"] == "int8", record["content"]
    with torch.no_grad():
        model = lmlab.load(directory)
        model.network.embedding.weight[3] += 1
    with pytest.raises(UserError, match="no longer those of"):
        lmlab.evaluate(model, documents=texts, out=tmp_path / "changed")
    folded = dataclasses.replace(lmlab.load(directory), adapter=tmp_path / "adapter")
    with pytest.raises(UserError, match="folded in"):
        lmlab.evaluate(folded, documents=texts, out=tmp_path / "folded")
    assert not (tmp_path / "changed").exists() and not (tmp_path / "folded").exists()


def test_every_method_has_a_function():
    from pathlib import Path

    from lmlab import plugins
    from lmlab.door import methods

    source = Path(methods.__file__).read_text()
    assert [name for name in plugins.methods() if f"from lmlab.methods.{name}" not in source] == []


def test_a_text_becomes_the_vectors_of_its_compressor(directory, tmp_path):
    from lmlab.methods.autocompressor import AutoCompressor

    AutoCompressor.from_base(directory, summary_length=2).save(tmp_path / "c", companions=directory)
    found = lmlab.compress_text(tmp_path / "c", TEXT * 3, segment=16)
    ids = torch.tensor([Tokenizer.load(directory).encode_prompt(TEXT * 3, "as_text")])
    expected = AutoCompressor.load(tmp_path / "c").compress(ids, segment_lengths=16).soft_prompt
    assert torch.equal(found.vectors_BPD, expected.vectors_BPD)
    with pytest.raises(UserError, match="no tokens"):
        lmlab.compress_text(tmp_path / "c", " ")


def test_a_retriever_is_attacked_as_the_stage_does_it(tmp_path):
    encoder, data = write_retriever(tmp_path / "encoder"), write_collection(tmp_path / "data")
    attacks = {"stuffing": {"optimizer": "none", "k": 2, "length": 10}}
    settings = {"attacks": attacks, "k": [20], "rate": 0.1, "precision": "fp32", "fusion": False}
    settings |= {"detectors": ["norm"]}
    found = lmlab.attack_retriever(data, data, tmp_path / "run", encoder=encoder, **settings)
    (attack,) = found.attacks
    assert attack["name"] == "attack-stuffing" and 0 <= attack["found"]["asr"]["20"] <= 1
    assert [row["defense"] for row in found.defenses] == ["norm", "stack"]
    assert (tmp_path / "run" / "poison" / "attack-stuffing" / "removal.txt").exists()
    with pytest.raises(UserError, match="the settings.*Did you mean 'fusion'"):
        lmlab.attack_retriever(data, data, tmp_path / "run", encoder=encoder, fussion=True)


def test_a_trained_program_is_run(tmp_path):
    from lmlab.methods.transformer_programs import Interpreter

    small = {"size": 300, "num_layers": 1, "cat_heads": 0, "num_heads": 1, "cat_mlps": 0, "num_mlps": 1}
    program = lmlab.train_program(tmp_path / "run", task="hist", **small, seeds=1, epochs=1, polish=0)
    (answer,) = Interpreter(program).run([["<s>", "1", "2", "1"]]).answers
    assert len(answer) == 4
    again = lmlab.train_program(str(tmp_path / "run"), task="hist", **small, seeds=1, epochs=1, polish=0)
    assert again == program
