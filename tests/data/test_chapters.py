"""Chapters from the forms that books are written in: what is prose, code or a formula arrives, and nothing else."""

from __future__ import annotations

import contextlib
import time

import pytest

from lmlab.data import Reject
from lmlab.data.chapters.chapter import Chapter, cut_at_paragraph
from lmlab.data.chapters.docbook import read_docbook
from lmlab.data.chapters.hypertext import read_html
from lmlab.data.chapters.latex import read_latex
from lmlab.data.chapters.rst import read_rst
from lmlab.data.chapters.source import ChaptersSource, read_chapters
from lmlab.errors import UserError

DOCBOOK = """<?xml version="1.0" ?>
<!DOCTYPE book PUBLIC "-//X//Y" "kde.dtd" [ <!ENTITY app "The App &amp; more">
 <!ENTITY other SYSTEM "file:///etc/passwd"> ]>
<book><title>All</title>
<chapter id="one"><title>Par<emphasis>all</emphasis>ax</title><indexterm><primary>dropped</primary></indexterm>
<para>&app; uses &kstars; at 3.26&nbsp;light-years &mdash; or
31<superscript>2</superscript><footnote><para>a note</para></footnote>. &other;</para>
<itemizedlist><listitem><para>one</para></listitem><listitem><para>two</para></listitem></itemizedlist>
<screen>  a
    b</screen>
<sect1><title>Deeper</title><para>Text.</para></sect1></chapter>
<chapter><title>Two</title><para>x</para></chapter></book>"""

RST = """.. _target:

=====
Title
=====

.. currentmodule:: numpy

**Trees** are made by :func:`~numpy.array` and :ref:`others <there>`, see :math:`x_1`
and ``code *here*``; a `link <http://x>`_ [1]_.

.. math::

   a = b

Sub
---

- one
- two

Example::

    >>> 1
    1

.. image:: x.png

.. note:: Mind this.

.. versionadded:: 3.1
   gone
"""

HTML = """<html><head><title>Page</title><style>p{}</style></head><body><nav><ul><li>elsewhere</ul></nav>
<div class="sphinxsidebar">aside</div><main><h1>Errors</h1><p>First <b>bold</b> &amp; x<sup>2</sup>
<ul><li>one<li>two</ul><pre>  a
    b</pre><table><tr><td>1<td>2</tr></table><script>evil()</script>
<math alttext="a^2"><mi>a</mi></math> ends</main><footer>foot</footer></body></html>"""

LATEX = r"""\documentclass{book}\title{Whole}
\begin{document}
\chapter{First}\label{c}
It is \textbf{kept \emph{whole}}~\cite{x}: 5\% % gone
\begin{equation}\label{e}
E = mc^2
\end{equation}
and $a_{1}$.
\begin{itemize}\item one \item two\end{itemize}
\begin{verbatim}
50 % of {it}
\end{verbatim}
\chapter{Second} Text.
\end{document}"""


def test_docbook_gives_its_chapters_and_fetches_nothing():
    first, second = read_docbook(DOCBOOK)
    assert (first.title, second.title) == ("Parallax", "Two")
    assert first.text.split("\n\n") == [
        "# Parallax",
        "The App & more uses kstars at 3.26 light-years \u2014 or 31^2 (a note). other",
        "- one",
        "- two",
        "    a\n      b",
        "## Deeper",
        "Text.",
    ]


def test_docbook_of_a_billion_laughs_ends_at_once():
    entities = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10 if n else "ha"}">' for n in range(10))
    (part,) = read_docbook(f"<!DOCTYPE x [{entities}]><article><para>&a9;</para></article>")
    assert len(part.text) < 1_000_000


def test_docbook_that_is_not_well_formed_is_refused_with_its_line():
    with pytest.raises(ValueError, match="line 2: not well-formed"):
        read_docbook("<article>\n<para>a</article>")


def test_rst_keeps_prose_code_and_formulas():
    (part,) = read_rst(RST)
    assert part.title == "Title"
    assert part.text.split("\n\n") == [
        "# Title",
        "**Trees** are made by numpy.array and others, see $x_1$ and `code *here*`; a link.",
        "$$\na = b\n$$",
        "## Sub",
        "- one\n- two",
        "Example:",
        "    >>> 1\n    1",
        "Mind this.",
    ]


def test_html_keeps_the_main_part():
    (part,) = read_html(HTML)
    assert part.title == "Errors"
    assert part.text.split("\n\n") == [
        "# Errors",
        "First bold & x^2",
        "- one",
        "- two",
        "    a\n      b",
        "1 | 2",
        "$a^2$ ends",
    ]


def test_latex_keeps_formulas_and_code_to_the_letter():
    first, second = read_latex(LATEX)
    assert (first.title, second.text) == ("First", "# Second\n\nText.")
    paragraphs = first.text.split("\n\n")
    assert paragraphs[0] == "# First"
    assert paragraphs[1].startswith("It is kept whole : 5%")
    assert "\\begin{equation}\nE = mc^2\n\\end{equation}\nand $a_{1}$." in first.text
    assert paragraphs[-3:] == ["- one", "- two", "    50 % of {it}"]


def test_a_long_chapter_is_cut_between_paragraphs():
    chapter = Chapter("p", "t", "# t\n\none two three\n\nfour five\n\n## next\n\nsix")
    assert cut_at_paragraph(chapter, 100) == chapter
    assert cut_at_paragraph(chapter, 9).text == "# t\n\none two three\n\nfour five"
    assert cut_at_paragraph(Chapter("p", "t", "one two  three four"), 3).text == "one two  three"


def test_a_folder_of_books_gives_domains_books_and_reasons(tmp_path):
    words = "word " * 250
    (tmp_path / "phys" / "astro").mkdir(parents=True)
    (tmp_path / "phys" / "astro" / "one.txt").write_text(words)
    (tmp_path / "phys" / "astro" / "two.rst.txt").write_text(f"Title\n=====\n\n{words}")
    (tmp_path / "phys" / "astro" / "short.md").write_text("too short")
    (tmp_path / "phys" / "astro" / "bad.docbook").write_text("<a><b></a>")
    (tmp_path / "phys" / "astro" / "picture.png").write_bytes(b"\x89PNG")
    found = [*read_chapters(str(tmp_path), max_words=210)]
    chapters = [each for each in found if not isinstance(each, Reject)]
    assert [(each.domain, each.book, each.num_words) for each in chapters] == [("phys", "astro", 210)] * 2
    assert sorted(each.reason.split(" (")[0] for each in found if isinstance(each, Reject)) == [
        "2 words, fewer than 200",
        "line 1: not well-formed XML",
    ]
    documents = [each for each in ChaptersSource(path=str(tmp_path)).read() if not isinstance(each, Reject)]
    assert {each.group for each in documents} == {"astro"}
    assert sorted(each.id for each in documents) == sorted(each.path for each in chapters)


def test_a_folder_without_chapters_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    for place, told in (
        (tmp_path, r"holds no file that ends in .*'\.html?'.* or '\.\w+'"),
        (tmp_path / "a.png", "holds no chapters"),
    ):
        with pytest.raises(UserError, match=told):
            [*read_chapters(str(place))]


HOSTILE = {
    "docbook chapters": (
        read_docbook,
        "<book>" + "<chapter><title>t</title><para>x</para></chapter>" * 8000 + "</book>",
    ),
    "docbook doctypes": (read_docbook, "<!DOCTYPE a " * 20_000),
    "docbook declarations": (read_docbook, "<?xml " * 20_000),
    "html nested": (read_html, "<div>" * 40_000),
    "html lists": (read_html, "<ul><li>" * 40_000),
    "html never closed": (read_html, "<b>" * 40_000 + "</i>" * 40_000),
    "html comments": (read_html, "<!--" * 40_000),
    "rst colons": (read_rst, ":" * 40_000),
    "rst roles": (read_rst, "a:" * 40_000 + "`"),
    "latex equations": (read_latex, "\\begin{equation}" * 20_000),
    "latex formulas": (read_latex, "\\(" * 40_000 + "\\[" * 40_000),
    "latex listings": (read_latex, "\\begin{verbatim}" * 20_000),
    "latex options": (read_latex, "\\cite[" * 40_000),
    "latex lines": (read_latex, "\n" * 40_000 + " " * 40_000),
}


@pytest.mark.parametrize("shape", HOSTILE)
def test_what_never_closes_takes_linear_time(shape: str) -> None:
    """Quadratic time would need from ten seconds to minutes."""
    reader, text = HOSTILE[shape]
    started = time.process_time()
    with contextlib.suppress(ValueError):
        reader(text)
    assert time.process_time() - started < 4


def test_line_breaks_with_a_length_are_no_formulas_and_stand_in_them() -> None:
    (part,) = read_latex(
        "Here \\[ a \\\\[2pt] b \\] and\n\n\\begin{tabular}{l}x\\\\[1ex]y\\end{tabular} and \\[c\\] end."
    )
    assert "\\[ a \\\\[2pt] b \\]" in part.text and "\\[c\\]" in part.text and "1ex" not in part.text
