"""What is printed: text from outside is neither markup nor a command to the terminal."""

from __future__ import annotations

import io
import re

from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from lmlab import cli, progress
from lmlab.terminal import Terminal, markup, printable


def shown(what, **options):
    terminal = Terminal(width=300)
    terminal.file = io.StringIO()
    terminal.print(what, **options)
    return terminal.file.getvalue()


@given(st.text(st.characters(exclude_characters="\n\t")))
def test_any_text_is_printed_as_it_is(text):
    assert shown(text, soft_wrap=True, end="") == printable(text)


def test_brackets_names_of_emoji_and_commands_are_text():
    text = "[/bad] [bold]x[/bold] :smile: \x1b[31mr\u202eed\x1b[0m\u2066 \udcff"  # \u202e shows the rest backwards
    expected = "[/bad] [bold]x[/bold] :smile: [31mred[0m \\udcff"
    table = Table(text, title=text, width=200)
    table.add_row(text)
    assert shown(text, soft_wrap=True) == expected + "\n"
    assert shown(table).count(expected) == 3
    assert shown(markup("[bold]{}[/bold] of {}", text, 3), soft_wrap=True) == expected + " of 3\n"


@given(st.text(max_size=20), st.text(max_size=20))
def test_arguments_of_markup_stand_in_its_styles(first, second):
    text = markup("a [bold]{}[/bold] b [dim]{} c", first, second)
    first, second = printable(first), printable(second)
    assert text.plain == f"a {first} b {second} c"
    assert [text.plain[span.start : span.end] for span in text.spans] == [first, f"{second} c"]


def test_labels_of_a_bar_are_text(monkeypatch):
    terminal = Terminal(stderr=True)
    terminal._force_terminal, terminal.file = True, io.StringIO()
    monkeypatch.setattr(progress, "console", terminal)
    with progress.progress("[/bad]", 3, "x") as advance:
        advance(1, note="[/worse]")
        terminal.print("line")
    assert "line" in terminal.file.getvalue()


class _Broken(Exception):
    pass


def test_an_unforeseen_error_is_one_sentence_and_a_traceback_only_on_request(lmlab, monkeypatch):
    from lmlab.errors import doing

    def app(**_):
        with doing("the stage 'model' (train)"):
            raise _Broken("what\nis it")

    monkeypatch.setattr(cli, "app", app)
    found = lmlab("run", "x.yaml")
    assert found.code == 1 and "Traceback" not in found.err and "--debug" in found.err
    assert "lmlab failed in the stage 'model' (train): _Broken: what" in found.err
    for place in (("--debug", "run"), ("run", "--debug")):
        again = lmlab(*place)
        assert again.code == 1 and "Traceback" in again.err
    monkeypatch.setenv("LMLAB_DEBUG", "1")
    assert "Traceback" in lmlab("run").err


def test_debug_behind_a_double_dash_is_a_text(lmlab):
    found = lmlab("run", "--", "--debug")
    assert found.code == 2 and re.search("No such file: '--debug'", found.err)
