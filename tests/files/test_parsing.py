"""JSON and YAML from outside: strict, bounded, and refused with the place and the reason."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.errors import UserError
from lmlab.files import parse_json, parse_yaml, read_json, read_jsonl, read_yaml, write_yaml

_BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)
)
REFUSED_YAML = {
    "a template without quotes": ("name: {{ x }}", "in quotes"),
    "a list as a key": ("? [a]\n: 1", "a key must be plain text"),
    "an alias of itself": ("a: &a [*a]", "holds itself"),
    "aliases that multiply": (_BOMB, "aliases multiply"),
    "deep nesting": ("a: " + "[" * 5000 + "]" * 5000, "nest"),
    "a huge number": ("n: " + "9" * 5000, "more than 40 digits"),
    "a number beyond 64 bits": ("n: 99999999999999999999", "too large"),
    "an infinite number": ("n: 1e999", "not a finite number"),
    "a tab": ("\ta: 1", "cannot start any token"),
    "a key twice": ("a: 1\nb: 2\na: 3", "'a' appears twice"),
    "an object": ("!!python/object:os.system {}", "is not allowed"),
    "an explicit type that does not fit": ("a: !!int abc", "not of the type int"),
    "a control character": ("a: \x00", "control characters"),
    "two documents": ("--- 1\n--- 2", "another document"),
    "an unknown alias": ("a: *x", "undefined alias"),
}


@pytest.mark.parametrize("case", REFUSED_YAML)
def test_bad_yaml_is_refused_with_its_place(case):
    text, reason = REFUSED_YAML[case]
    with pytest.raises(UserError, match="'f.yaml'") as caught:
        parse_yaml(text, "'f.yaml'")
    assert reason in str(caught.value) and ("line" in str(caught.value) or "character" in str(caught.value))


def test_yaml_is_read_as_users_mean_it():
    text = "a: 1e-3\nb: no\nc: 010\nd: 12:30:00\ne: 2024-02-30\nf: 0x1F\ng: =\nh: true\ni: ~\nj: 1_000\nk: '5'"
    expected = {"a": 0.001, "b": "no", "c": "010", "d": "12:30:00", "e": "2024-02-30", "f": 31, "g": "="}
    assert parse_yaml(text, "") == expected | {"h": True, "i": None, "j": 1000, "k": "5"}


def test_merge_keys_are_legal():
    text = "d: &d {x: 1, y: 2}\ne: {<<: *d, y: 3}\nf: {<<: [*d, {z: 4}]}"
    found = parse_yaml(text, "")
    assert found["e"] == {"x": 1, "y": 3} and found["f"] == {"x": 1, "y": 2, "z": 4}


REFUSED_JSON = {
    "a key twice": ('{"a": 1, "a": 2}', "'a' appears twice"),
    "deep nesting": ("[" * 100_000, "nests deeper"),
    "no number": ('{"a": NaN}', "NaN is not a finite number"),
    "an infinite number": ('{"a": 1e999}', "not a finite number"),
    "a huge number": ("1" + "0" * 5000, "5001 digits"),
    "half a character": ('"\\ud800"', "half of a character"),
    "not UTF-8": (b"\xff", "not UTF-8 text (byte 0)"),
    "nothing": ("", "Expecting value"),
}


@pytest.mark.parametrize("case", REFUSED_JSON)
def test_bad_json_is_refused_with_its_place(case):
    text, reason = REFUSED_JSON[case]
    with pytest.raises(UserError, match="'f.json'") as caught:
        parse_json(text, "'f.json'")
    assert reason in str(caught.value)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_all_of_json_is_read_as_the_standard_library_does(value):
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False).encode()):
        assert parse_json(text, "") == json.loads(text)


@given(VALUES)
def test_what_yaml_writes_is_read_back(value):
    assert parse_yaml(write_yaml(value), "") == value


@given(st.text() | st.text("{}[]:,&*!|>'\"%@`?-<~ \n\tab01.eE_", max_size=40))
def test_no_text_raises_anything_but_an_error_for_the_user(text):
    for parse in (parse_yaml, parse_json):
        with contextlib.suppress(UserError):
            parse(text, "it")


@given(st.binary(max_size=60))
def test_no_file_raises_anything_but_an_error_for_the_user(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "file"
    path.write_bytes(data)
    for read in (read_json, read_yaml, lambda path: list(read_jsonl(path))):
        with contextlib.suppress(UserError):
            read(path)


@pytest.mark.parametrize("line", ["[1]", '"text"', "3", "null"])
def test_a_line_that_is_no_mapping_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n' + line + "\n")
    with pytest.raises(UserError, match="line 2 must hold a mapping"):
        list(read_jsonl(path))
