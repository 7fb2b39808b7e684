"""Python text in the reference's layout is parsed, never run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lmlab.errors import UserError
from lmlab.methods.transformer_programs.program.import_python import import_python
from lmlab.methods.transformer_programs.program.interpret import Interpreter
from lmlab.methods.transformer_programs.program.ir import Lookup, Select

_TEXT = """
import numpy as np
import pandas as pd

def select_closest(keys, queries, predicate):
    return [min(j for j, k in enumerate(keys[: i + 1]) if predicate(q, k)) for i, q in enumerate(queries)]

def run(tokens):
    classifier_weights = pd.read_csv("somewhere/else/tiny_weights.csv", index_col=[0, 1], dtype={"feature": str})
    token_scores = classifier_weights.loc[[("tokens", str(v)) for v in tokens]]
    positions = list(range(len(tokens)))
    position_scores = classifier_weights.loc[[("positions", str(v)) for v in positions]]
    ones = [1 for _ in range(len(tokens))]
    one_scores = classifier_weights.loc[[("ones", "_") for v in ones]].mul(ones, axis=0)

    def predicate_0_0(position, token):
        if position in {0, 1}:
            return token == "a"
        elif position in {np.int64(1), 2}:
            return token == "b"
    attn_0_0_pattern = select_closest(tokens, positions, predicate_0_0)
    attn_0_0_outputs = aggregate(attn_0_0_pattern, tokens)
    attn_0_0_output_scores = classifier_weights.loc[[("attn_0_0_outputs", str(v)) for v in attn_0_0_outputs]]

    def num_predicate_0_0(q_token, k_token):
        if q_token in {"a"}:
            return k_token == "a"
    num_attn_0_0_pattern = select(tokens, tokens, num_predicate_0_0)
    num_attn_0_0_outputs = aggregate_sum(num_attn_0_0_pattern, ones)
    num_attn_0_0_output_scores = classifier_weights.loc[
        [("num_attn_0_0_outputs", "_") for v in num_attn_0_0_outputs]
    ].mul(num_attn_0_0_outputs, axis=0)

    def mlp_0_0(token, attn_0_0_output):
        key = (token, attn_0_0_output)
        if key in {("a", "b"), ("b", "b")}:
            return 1
        return 0
    mlp_0_0_outputs = [mlp_0_0(k0, k1) for k0, k1 in zip(tokens, attn_0_0_outputs)]
    mlp_0_0_output_scores = classifier_weights.loc[[("mlp_0_0_outputs", str(v)) for v in mlp_0_0_outputs]]

    feature_logits = pd.concat([df.reset_index() for df in [mlp_0_0_output_scores, num_attn_0_0_output_scores]])
    logits = feature_logits.groupby(level=0).sum(numeric_only=True).to_numpy()
    classes = classifier_weights.columns.to_numpy()
    predictions = classes[logits.argmax(-1)]
    if tokens[0] == "<s>":
        predictions[0] = "<s>"
    if tokens[-1] == "</s>":
        predictions[-1] = "</s>"
    return predictions.tolist()

examples = [(["a"], ["x"])]
for x, y in examples:
    print(f"x: {x}")
    y_hat = run(x)
"""
_WEIGHTS = """feature,value,x,y
mlp_0_0_outputs,0,1,0
mlp_0_0_outputs,1,0,1
num_attn_0_0_outputs,_,0.25,0
attn_0_0_outputs,a,5,5
tokens,a,0,0
tokens,b,0,0
"""


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    (tmp_path / "tiny_weights.csv").write_text(_WEIGHTS)
    (tmp_path / "tiny.py").write_text(_TEXT)
    return tmp_path / "tiny.py"


def test_the_statements_become_nodes(text_file: Path) -> None:
    program = import_python(text_file)
    head, count, table = program.nodes
    assert isinstance(head, Select) and isinstance(count, Select) and isinstance(table, Lookup)
    assert (head.key, head.query, head.value) == ("tokens", "positions", "tokens")
    assert set(head.predicate) == {(0, "a"), (1, "a"), (2, "b")}  # the first branch that holds counts
    assert count.predicate == (("a", "a"),) and count.op == "select_sum"
    assert table.table == {("a", "b"): 1, ("b", "b"): 1} and table.default == 0
    assert program.autoregressive and set(program.classifier.features) == {"mlp_0_0_outputs", "num_attn_0_0_outputs"}
    assert Interpreter(program).predict([["b", "a", "b", "a"]])[0][2] == "y"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("import pandas as pd", "import os", "line 3: 'import os'"),
        ("examples = [", "import_ = __import__('os')\nexamples = [", "is no statement of a program"),
        ("examples = [", "print(open('/etc/passwd').read())\nwhile True: pass\nexamples = [", "while True"),
        ("positions = list(range(len(tokens)))", "positions = list(range(9))", "line 11"),
        ('return token == "a"', 'return token != "a"', "does not compare the key with one value"),
        ("return 1\n", "return eval('1')\n", "is no value of a program"),
        ('{("a", "b"), ("b", "b")}', '{("a", "b", "c")}', "has a key of another length"),
        ("zip(tokens, attn_0_0_outputs)", "zip(attn_0_0_outputs)", "does not give a table its inputs in order"),
        ("logits.argmax(-1)", "logits.argmin(-1)", "is no statement of a program"),
        ("logits.argmax(-1)", "(-logits).argmax(-1)", "is no statement of a program"),
        ("classes[logits.argmax(-1)]", "__import__('os').environ", "is no statement of a program"),
        ('predictions[0] = "<s>"', 'predictions[0] = "x"', "is no statement of a program"),
        (".sum(numeric_only=True)", ".mean(numeric_only=True)", "is no statement of a program"),
        ("weights.columns.to_numpy()", "weights.columns.to_numpy()[::-1]", "is no statement of a program"),
        ("[df.reset_index() for", "[2 * df.reset_index() for", "does not sum tables of scores"),
        ("df in [mlp", "df in [mlp_0_0_output_scores, mlp", "line 42: .* sums mlp_0_0_output_scores more than once"),
        ('    if tokens[-1] == "</s>":\n        predictions[-1] = "</s>"\n', "", "does not keep </s> in its answers"),
        ("    classes = ", "    ones = [1 for _ in range(len(tokens))]\n    classes = ", "line 44: .* a second time"),
        (
            '            return token == "b"\n',
            '            return token == "b"\n        else:\n            return token == "a"\n',
            "which a predicate does not",
        ),
        ("            return 1\n", "            return 1\n        return 2\n", "is no statement of a program"),
        ("somewhere/else/tiny_weights.csv", "other.csv", "No such file"),
        ("def run(tokens):", "def run(x):", "must take tokens"),
        ("def run(tokens):", "@evil\ndef run(tokens):", "is not how the reference writes a function"),
        ("def run(tokens):", "def run(tokens=evil()):", "is not how the reference writes a function"),
        ("def run(tokens):", "def run(tokens) -> evil():", "is not how the reference writes a function"),
        ("attn_0_0_output):\n", "attn_0_0_output, *more):\n", "line 34: .* is not how the reference writes a function"),
        ("attn_0_0_output):\n", "attn_0_0_output=evil()):\n", "is not how the reference writes a function"),
        ("    def mlp_0_0(", "    def mlp_0_0(a, b):\n        pass\n    def mlp_0_0(", "comes a second time"),
        ("examples = [", "def run(tokens):\n    return 1\nexamples = [", "comes a second time"),
        ("    logits = ", "    return predictions.tolist()\n    logits = ", "comes before the end of run"),
        ("    return predictions.tolist()\n", "", "must return an answer"),
        ("return 0\n", f"return {'-' * 900}1\n", "is nested more deeply"),
        ("len(tokens)))\n", f"len(tokens{'.a' * 1500})))\n", "is nested more deeply"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_line(text_file: Path, old: str, new: str, message: str) -> None:
    assert old in _TEXT
    text_file.write_text(_TEXT.replace(old, new))
    with pytest.raises(UserError, match=message):
        import_python(text_file)


def test_what_a_table_gives_otherwise_may_stand_behind_else(text_file: Path) -> None:
    plain = import_python(text_file)
    text_file.write_text(_TEXT.replace("        return 0\n", "        else:\n            return 0\n"))
    assert "else" in text_file.read_text() and import_python(text_file) == plain


def test_a_helper_that_is_not_the_reference_s_is_told(text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    select = "def select(keys, queries, predicate):\n    return [[predicate(q, k) for k in keys] for q in queries]\n"
    for text, told in ((select, ""), (select.replace("predicate(q", "not predicate(q"), "line 5: select is not as")):
        text_file.write_text(re.sub(r"def select_closest.*\n.*\n", text, _TEXT))
        import_python(text_file)
        said = " ".join(capsys.readouterr().err.split())
        assert told in said and bool(told) == bool(said)


def test_broken_python_is_refused(text_file: Path) -> None:
    text_file.write_text("def run(tokens:\n")
    with pytest.raises(UserError, match="is not Python"):
        import_python(text_file)


def test_rows_of_numbers_for_a_head_that_copies_words_are_refused(text_file: Path) -> None:
    rows = _WEIGHTS.replace("attn_0_0_outputs,a,5,5", "attn_0_0_outputs,0,5,5", 1)
    (text_file.parent / "tiny_weights.csv").write_text(rows)
    head = "[mlp_0_0_output_scores, num_attn_0_0_output_scores]"
    assert head in _TEXT
    text_file.write_text(_TEXT.replace(head, "[token_scores, attn_0_0_output_scores]"))
    with pytest.raises(
        UserError, match="'attn_0_0_outputs' has values such as 'a', but the classifier's rows for it are those of '0'"
    ):
        import_python(text_file)
