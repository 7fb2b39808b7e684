"""Readers: whatever is damaged in a file is told with its name, and what lmlab says itself stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.errors import LmlabError, UserError, from_os_error, reads


@reads("a shape")
def shape_of(path, value):
    return value["rows"] * [0][value["zero"]] + len(value["names"]["first"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["rows", "zero", "names", "first"]), inner)
    ),
)


@given(JSON)
def test_a_value_of_any_form_is_read_or_refused_by_name(value):
    told = "'x.json' is not a shape"
    try:
        shape_of(Path("x.json"), value)
    except UserError as error:
        told = str(error)
    assert told.startswith("'x.json' is not a shape")


def test_iterators_are_guarded_while_they_run():
    @reads("rows")
    def rows(path):
        yield 1
        raise KeyError("second")

    found = rows(Path("x"))
    assert next(found) == 1
    with pytest.raises(UserError, match="'x' is not rows, or is damaged .the key 'second' is missing"):
        next(found)


@pytest.mark.parametrize("error", [UserError("Said."), MemoryError(), OSError(2, "No such file")])
def test_what_is_said_already_and_what_is_no_damage_pass(error):
    @reads("it")
    def fails(path):
        raise error

    with pytest.raises(type(error)) as caught:
        fails(Path("x"))
    assert caught.value is error


def test_damage_that_a_reader_names_itself_is_the_users():
    @reads("it")
    def fails(path):
        raise LmlabError("Torn.", "Copy it.")

    with pytest.raises(UserError, match="Torn") as caught:
        fails(Path("x"))
    assert caught.value.exit_code == 2 and caught.value.remedy == "Copy it."


def test_a_path_that_the_system_refuses_is_the_users():
    assert from_os_error(OSError(36, "File name too long", "x" * 400)).exit_code == 2
