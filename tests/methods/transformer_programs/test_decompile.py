"""Language models as programs of averages: the paths are the model, the text is the program, and what is found answers
as the model does.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from torch import Tensor

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.methods.transformer_programs.config import DecompileConfig
from lmlab.methods.transformer_programs.decompile.answers import Asked, ask, match, placed
from lmlab.methods.transformer_programs.decompile.form import Form, Head, Map
from lmlab.methods.transformer_programs.decompile.paths import Paths, check
from lmlab.methods.transformer_programs.decompile.rules import Rule, candidates
from lmlab.methods.transformer_programs.decompile.run import decompile
from lmlab.methods.transformer_programs.decompile.simplify import fold_neurons
from lmlab.methods.transformer_programs.decompile.text import own_lines, to_text
from lmlab.models import ModelConfig, Transformer, save_pretrained
from lmlab.runs import Recipe, run_recipe

NAMES = ("<s>", "a", "b", "1", "2")


def small(**changes: Any) -> Transformer:
    shape = {
        "vocab_size": len(NAMES), "num_layers": 2, "d_model": 8, "num_heads": 2, "d_ff": 6, "max_seq_len": 12,
        "norm": "layernorm", "norm_bias": True, "positions": "learned", "gated": False, "activation": "gelu_tanh",
        "qkv_bias": True, "attention_output_bias": True, "ffn_bias": True, "tie_embeddings": False, "init_std": 0.5,
        **changes,
    }  # fmt: skip
    model = Transformer(ModelConfig(**shape)).initialize(0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def some(count: int = 6, length: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.randint(0, len(NAMES), (count, length), generator=torch.Generator().manual_seed(2))
    return ids, torch.arange(length).expand_as(ids), torch.ones_like(ids, dtype=torch.bool)


def written(model: Transformer) -> Paths:
    ids, positions, real = some()
    return Paths(model, range(len(NAMES)), range(1, len(NAMES)), ids, positions, real)


@pytest.mark.parametrize("positions", ["learned", "none"])
@torch.no_grad()
def test_the_paths_of_a_model_without_norms_add_up_to_it(positions: str) -> None:
    model = small(norm="none", norm_bias=False, positions=positions, num_kv_heads=1)
    paths, (ids, places, _) = written(model), some()
    wanted = model(ids, position_ids_BT=places).logits_BTV[..., 1:].log_softmax(-1)
    torch.testing.assert_close(paths(ids, places, noisy=False).log_softmax(-1), wanted, rtol=1e-4, atol=1e-4)
    form = paths.form(NAMES, NAMES[1:])
    torch.testing.assert_close(form.run(ids, places).log_softmax(-1), wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_norm_is_a_matrix_where_its_scale_is_the_same_everywhere() -> None:
    model = small()
    for block in model.blocks:
        for norm in (block.attention_norm, block.ffn_norm):
            norm.eps = 1e6  # beside which no variance counts
            norm.weight.mul_(1e3)
    assert model.final_norm is not None
    model.final_norm.eps = 1e6
    model.final_norm.weight.mul_(1e3)
    paths, (ids, places, _) = written(model), some()
    wanted = model(ids, position_ids_BT=places).logits_BTV[..., 1:].log_softmax(-1)
    torch.testing.assert_close(paths(ids, places, noisy=False).log_softmax(-1), wanted, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_closed_gate_is_a_path_less() -> None:
    paths, (ids, places, _) = written(small(norm="none", norm_bias=False)), some()
    before = len(paths.form(NAMES, NAMES[1:]).maps)
    paths.answer.log_alpha[0] = -5.0
    paths.neurons[0].log_alpha[:4] = -5.0
    form = paths.form(NAMES, NAMES[1:])
    assert len(form.maps) == before - 1 and "token" not in form.answer and form.sizes["m0"] == (4, 5)
    torch.testing.assert_close(
        form.run(ids, places).log_softmax(-1), paths(ids, places, noisy=False).log_softmax(-1), rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_neurons_of_the_token_are_a_table_of_it() -> None:
    paths, (ids, places, _) = written(small(norm="none", norm_bias=False)), some()
    paths.neuron_reads[0].log_alpha[1:] = -5.0
    form = paths.form(NAMES, NAMES[1:])
    before = form.run(ids, places)
    folded = fold_neurons(form)
    assert "m0" not in {part.name for part in folded.parts}
    torch.testing.assert_close(folded.run(ids, places), before, rtol=1e-4, atol=1e-4)


def loaded(text: str, directory: Path) -> Callable[[list[str]], list[str]]:
    path = directory / "program.py"
    path.write_text(text)
    run: Callable[[list[str]], list[str]] = runpy.run_path(str(path))["run"]
    return run


@torch.no_grad()
def test_the_text_says_what_the_program_does(tmp_path: Path) -> None:
    form = written(small(norm="none", norm_bias=False)).form(NAMES, NAMES[1:])
    ids, places, _ = some()
    wanted = form.run(ids, places).argmax(-1)
    run = loaded(to_text(form), tmp_path)
    for row, numbers in zip(ids.tolist(), wanted.tolist(), strict=True):
        assert run([NAMES[each] for each in row]) == [form.labels[each] for each in numbers]


def test_every_rule_is_said_as_it_computes(tmp_path: Path) -> None:
    values, positions = NAMES, tuple(range(12))
    chosen = [
        ("token", "token", [Rule("same"), Rule("less"), Rule("rising")]),
        ("token", "token", [Rule("more"), Rule("both", of="a", what="b"), Rule("is", what="1")]),
        ("position", "position", [Rule("shift", by=-1), Rule("rising")]),
        ("position", "position", [Rule("same"), Rule("less"), Rule("more")]),
        ("one", "token", [Rule("is", what="<s>"), Rule("rising")]),
        ("token", "token", [Rule("above"), Rule("below")]),
        ("position", "position", [Rule("below"), Rule("above"), Rule("every", 3, what=1)]),
    ]
    kinds = {"token": values, "position": positions, "one": (1,)}
    generator = torch.Generator().manual_seed(0)
    for query, key, rules in chosen:
        factors = torch.randn(len(rules), generator=generator)
        head = Head("a0", 0, {(query, key): Map(kinds[query], kinds[key], rules=rules, factors=factors)})
        late = Head("a1", 1, {("token", "a0(token)"): Map(values, values, rules=[Rule("same")], factors=torch.ones(1))})
        late.products["a0(token)", "token"] = Map(values, values, rules=[Rule("less")], factors=torch.ones(1))
        answer = {
            name: Map(
                values, values, rules=[Rule("same"), Rule("both", of="b", what="2")], factors=torch.tensor([1.0, 0.7])
            )
            for name in ("a1(token)", "a1(a0(token))")
        }
        form = Form(values, 12, values, [head, late], answer, "relu", {})
        ids, places, _ = some()
        wanted, run = form.run(ids, places).argmax(-1), loaded(to_text(form), tmp_path)
        for row, numbers in zip(ids.tolist(), wanted.tolist(), strict=True):
            assert run([values[each] for each in row]) == [values[each] for each in numbers]


def test_signs_within_a_token_are_its_own(tmp_path: Path) -> None:
    odd = "1 + -1"
    rules = [Rule("both", of=odd, what=odd)]
    answer = {"token": Map((odd, "a"), ("a", odd), rules=rules, factors=torch.ones(1))}
    form = Form((odd, "a"), 0, ("a", odd), [], answer, "relu", {})
    assert loaded(to_text(form), tmp_path)([odd, "a"]) == [odd, "a"]


def test_the_text_does_not_depend_on_the_order_of_sets() -> None:
    code = (
        "import torch\n"
        "from lmlab.methods.transformer_programs.decompile.form import Form, Head, Map\n"
        "from lmlab.methods.transformer_programs.decompile.text import to_text\n"
        "heads = [Head(f'a{n}', n // 4) for n in range(5)]\n"
        "answer = {f'a4(a{n}(token))': Map('xy', 'xy', torch.eye(2)) for n in range(4)}\n"
        "print(to_text(Form(('x', 'y'), 0, ('x', 'y'), heads, answer, 'relu', {})))\n"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-P", "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in range(3)
    }
    assert len(texts) == 1


def test_rules_are_offered_where_they_can_hold() -> None:
    kinds = {rule.kind for rule in candidates(("a", "b"), ("a", "b"))}
    assert kinds == {"same", "is", "both"}
    assert {"shift", "less", "more", "below", "above", "rising"} <= {
        rule.kind for rule in candidates(range(5), range(5))
    }
    assert Rule("every", 2, what=1).matrix((0, 1, 2), (0, 1, 2)).tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert Rule("shift", by=-1).matrix((0, 1, 2), (0, 1, 2)).tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]


def majority(count: int, longest: int) -> Asked:
    """Which of a and b has occurred at least as often, at each place."""
    generator, rows = torch.Generator().manual_seed(3), []
    for _ in range(count):
        length = int(torch.randint(1, longest + 1, (1,), generator=generator))
        rows.append(torch.randint(1, 3, (length,), generator=generator).tolist())
    labels = []
    for row in rows:
        found, sums = [], 0
        for each in row:
            sums += 1 if each == 1 else -1
            found.append(1 if sums >= 0 else 2)
        labels.append(found)
    return Asked(
        tuple((0, *row) for row in rows),
        tuple((False, *(True for _ in row)) for row in rows),
        tuple((None, *found) for found in labels),
    )


@pytest.fixture(scope="module")
def learned() -> Transformer:
    """A model that has learned a majority."""
    torch.manual_seed(0)
    model = small(num_layers=1, d_model=16, num_heads=1, d_ff=16, positions="none", init_std=0.1, max_seq_len=64)
    asked = majority(512, 10)
    where = placed(model, asked)
    labels = torch.full_like(where.ids_BT, -100)
    for row, found in enumerate(asked.labels):
        labels[row, : len(found)] = torch.tensor([-100 if each is None else each for each in found])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(250):
        rows = torch.arange(step * 64, step * 64 + 64) % len(asked)
        loss = model(where.ids_BT[rows], labels_BT=labels[rows]).loss.mean
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1
    return model.eval()


def test_a_learned_majority_is_read_as_one_uniform_head(learned: Transformer) -> None:
    found = decompile(learned, majority(600, 10), NAMES, DecompileConfig(steps=200))
    assert found.match >= 0.97
    (head,) = found.form.parts
    assert isinstance(head, Head) and "a0(token)" in found.form.answer
    assert found.paths["left"] <= 4 < found.paths["written"]
    longer = placed(learned, majority(200, 20))
    assert match(found.form, ask(learned, longer, found.token_ids, found.label_ids))[0] >= 0.95


def _written(learned: Transformer, place: Path) -> None:
    """The model with its tokenizer, and sequences of up to 10 and 20 symbols."""
    save_pretrained(learned, place / "model")
    numbers = {name: number for number, name in enumerate(NAMES)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="<s>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    Tokenizer(backend, "<s>", "<s>").save(place / "model")
    for name, longest in (("data", 10), ("longer", 20)):
        asked = majority(300, longest)
        rows = [
            {"tokens": [NAMES[each] for each in ids[1:]], "labels": [NAMES[each or 0] for each in labels[1:]]}
            for ids, labels in zip(asked.ids, asked.labels, strict=True)
        ]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_recipe_reads_a_model_as_a_program(learned: Transformer, tmp_path: Path) -> None:
    _written(learned, tmp_path)
    stage = {
        "kind": "decompile", "model": str(tmp_path / "model"), "data": str(tmp_path / "data.jsonl"),
        "test": [str(tmp_path / "longer.jsonl")], "steps": 150,
    }  # fmt: skip
    stages = {"program": stage, "page": {"kind": "report"}}
    run_recipe(Recipe.parse({"name": "read", "stages": stages}, "the test"), tmp_path / "run")
    found = json.loads((tmp_path / "run" / "results.json").read_text())["program"]
    text = (tmp_path / "run" / "program" / "program" / "program.py").read_text()
    assert found["match"] >= 0.97 and found["lines"] == own_lines(text)
    assert list(found["tests"]) == [str(tmp_path / "longer.jsonl")]
    page = next((tmp_path / "run").rglob("report.html")).read_text("utf-8")
    assert "A language model as a program" in page and ">longer.jsonl<" in page
    assert "Of 9 paths, " in page and "def run(" in page and "def attend(" not in page


def test_the_command_writes_a_program_that_runs_alone(
    learned: Transformer, tmp_path: Path, lmlab: Callable[..., Any]
) -> None:
    _written(learned, tmp_path)
    arguments = ["programs", "decompile", str(tmp_path / "model"), "--data", str(tmp_path / "data.jsonl")]
    arguments += ["--test", str(tmp_path / "longer.jsonl"), "--steps", "150", "--out", str(tmp_path / "out")]
    result = lmlab(*arguments)
    assert result.code == 0, result.err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    (figures,) = manifest["tests"].values()
    assert manifest["match"] >= 0.97 and figures["program_accuracy"] >= 0.9 > figures["most_common"]
    text = (tmp_path / "out" / "program.py").read_text()
    assert manifest["lines"] == own_lines(text)
    ran = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "out" / "program.py"), "<s> a b b b"], capture_output=True, text=True
    )
    assert ran.returncode == 0 and ran.stdout.strip().endswith("'b', 'b']")
    strange = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "out" / "program.py"), "<s> z"], capture_output=True, text=True
    )
    assert strange.returncode == 2 and "unknown token 'z'" in strange.stderr
    (tmp_path / "odd.jsonl").write_text('{"tokens": ["z"], "labels": ["a"]}\n')
    refused = lmlab(*arguments[:3], "--data", str(tmp_path / "odd.jsonl"))
    assert refused.code == 2 and "'z' is no token of the model" in refused.err
    refused = lmlab(*arguments[:3], "--task", "hist")
    assert refused.code == 2 and "to their right" in refused.err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"positions": "rotary", "d_model": 8}, "positions: rotary"),
        ({"gated": True, "ffn_bias": False}, "gated: True"),
        ({"num_layers": 6, "num_heads": 4}, "paths"),
    ],
)
def test_what_cannot_be_written_out_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check(small(**changes))


def test_sequences_that_do_not_fit_the_positions_are_refused() -> None:
    with pytest.raises(UserError, match="begins at up to 8"):
        placed(small(), majority(4, 8), offsets=8)
