"""Facts about report pages: what they contain, what they never do, and how they are written."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Sequence
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import numpy as np
import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from lmlab.reports import (
    Block,
    Bounds,
    Cell,
    Code,
    Columns,
    Details,
    Facts,
    Figure,
    Note,
    Page,
    Paragraph,
    Sample,
    Section,
    Series,
    Table,
    Tokens,
    Tone,
    bar_chart,
    funnel_chart,
    heat_map,
    line_chart,
)

HOSTILE = "<script>alert(1)</script><a href=\"https://evil.example\">x</a><img src=x onerror='a()'>&amp;\"'</style>"


class Elements(HTMLParser):
    """The elements of a document, with their attributes, their ancestors and the text directly inside."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.stack: list[int] = []
        self.unbalanced: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))
        if tag not in self.VOID:
            self.stack.append(len(self.found) - 1)

    def handle_endtag(self, tag: str) -> None:
        if not self.stack or self.found[self.stack[-1]][0] != tag:
            self.unbalanced.append(tag)
        else:
            self.stack.pop()

    def handle_data(self, data: str) -> None:
        for index in self.stack:
            self.found[index][2].append(data)

    def all(self, tag: str, css_class: str | None = None) -> list[tuple[dict[str, str | None], str]]:
        return [
            (attributes, "".join(text))
            for name, attributes, text in self.found
            if name == tag and (css_class is None or css_class in (attributes.get("class") or "").split())
        ]

    def texts(self, tag: str, css_class: str | None = None) -> list[str]:
        return [text.strip() for _, text in self.all(tag, css_class)]


def page_of(*blocks: Block, title: str = "A page") -> str:
    return Page(title, sections=[Section("Only", list(blocks))]).to_html()


def loss_figure(name: str = "train") -> go.Figure:
    return line_chart([Series(name, [1, 2, 3], [3.0, 2.5, 2.2])], "step", "loss")


def every_block(text: str) -> list[Block]:
    return [
        Paragraph(text),
        Note(text, "warning"),
        Facts({text: text}),
        Table([text, "value"], [[text, 1.5]], caption=text),
        Code(text, caption=text),
        Code(text, caption=text, tones={0: "good"}),
        Columns([[Paragraph(text)], [Code(text)]]),
        Sample(text, text, caption=text),
        Tokens([text, text], [True, False], caption=text),
        Details(text, [Paragraph(text)]),
        Figure(loss_figure(text), caption=text, alt=text),
        Figure(bar_chart([text, "b"], {text: [1, 2], "other": [2, 1]}, {text: [0.1, 0]}, text, (text, 1.5))),
        Figure(heat_map([[1, 2]], [text, "b"], [text], text, text, text), text),
        Figure(funnel_chart([(text, 10), (text, 5)]), text),
        Figure(go.Figure(go.Scatter(x=[text], y=[1], name=text), layout={"title": {"text": text}}), text),
    ]


def hostile_page() -> str:
    return Page(HOSTILE, HOSTILE, [Section(HOSTILE, every_block(HOSTILE), HOSTILE)], HOSTILE).to_html()


def figures_in(html: str) -> list[dict[str, Any]]:
    return [json.loads(text) for attributes, text in Elements(html).all("script") if "data-figure" in attributes]


def strings_in(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings_in(item)]
    if isinstance(value, list):
        return [text for item in value for text in strings_in(item)]
    return [value] if isinstance(value, str) else []


def without_plotly(html: str) -> str:
    return html.replace(get_plotlyjs(), "")


def test_hostile_text_adds_no_element_to_the_page() -> None:
    tame = Page("t", "t", [Section("t", every_block("t"), "t")], "t").to_html()
    names = [tag for tag, _, _ in Elements(hostile_page()).found]
    assert names == [tag for tag, _, _ in Elements(tame).found]
    assert "img" not in names


def test_hostile_text_is_shown_as_it_is() -> None:
    elements = Elements(hostile_page())
    assert elements.texts("h1") == [HOSTILE]
    assert elements.texts("title") == [HOSTILE]
    assert elements.texts("h2") == [HOSTILE]
    assert elements.texts("td")[0] == HOSTILE
    assert elements.texts("code") == 3 * [HOSTILE]
    assert elements.texts("span", "completion") == [f"Completion: {HOSTILE}", HOSTILE]
    assert elements.texts("span", "token") == [HOSTILE, HOSTILE]
    assert elements.all("div", "plot-area")[0][0]["aria-label"] == HOSTILE


def test_no_figure_label_keeps_a_tag_with_attributes_or_an_unknown_tag() -> None:
    figures = figures_in(hostile_page())
    assert len(figures) == 5
    tags = {tag for figure in figures for text in strings_in(figure) for tag in re.findall("<[^>]*>", text)}
    assert tags <= {"<b>", "</b>", "<br>", "<extra>", "</extra>"}


def test_a_figure_given_by_the_user_keeps_bare_formatting_tags() -> None:
    figure = go.Figure(go.Scatter(x=[1], y=[1]), layout={"title": {"text": "<b>bold</b><br>2 < 3 <a href='x'>y</a>"}})
    (drawn,) = figures_in(page_of(Figure(figure)))
    assert drawn["layout"]["title"]["text"] == "<b>bold</b><br>2 &lt; 3 &lt;a href='x'>y&lt;/a>"


def test_markup_in_arrays_of_strings_is_neutralized() -> None:
    (drawn,) = figures_in(page_of(Figure(go.Figure(go.Bar(x=np.array([HOSTILE, "b"]), y=[1, 2])))))
    assert not any("<" in text for text in drawn["data"][0]["x"])


def test_rendering_leaves_the_figure_of_the_user_unchanged() -> None:
    figure = go.Figure(go.Scatter(x=[1], y=[1], name=HOSTILE))
    before = figure.to_json()
    page_of(Figure(figure))
    assert figure.to_json() == before


def test_figure_data_survive_the_escaping() -> None:
    (drawn,) = figures_in(page_of(Figure(loss_figure("a & b < c"))))
    (trace,) = drawn["data"]
    assert (trace["x"], trace["y"]) == ([1, 2, 3], [3.0, 2.5, 2.2])
    assert trace["name"] == "a &amp; b &lt; c"


def test_not_a_number_becomes_a_gap() -> None:
    (drawn,) = figures_in(page_of(Figure(line_chart([Series("s", [1, 2], [float("nan"), 1.0])], "x", "y"))))
    assert drawn["data"][0]["y"] == [None, 1.0]


def test_the_page_loads_nothing() -> None:
    html = without_plotly(page_of(*every_block("plain")))
    assert not re.search(r"https?://", html)
    assert not re.search(r"@import|url\(", html)
    for _, attributes, _ in Elements(html).found:
        assert "src" not in attributes
        assert "srcset" not in attributes
        assert (attributes.get("href") or "#").startswith(("#", "data:"))


def test_the_security_policy_allows_exactly_the_scripts_of_the_page() -> None:
    elements = Elements(hostile_page())
    policy = next(a["content"] for a, _ in elements.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    scripts = [text for attributes, text in elements.all("script") if "type" not in attributes]
    assert allowed == {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts}
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]


def test_only_a_page_with_webgl_traces_may_compile_code() -> None:
    assert "unsafe-eval" not in without_plotly(page_of(*every_block("plain")))
    cloud = Figure(go.Figure(go.Scattergl(x=[1], y=[1])))
    assert "&#39;unsafe-eval&#39;" in page_of(Details("folded", [cloud]))


@pytest.mark.parametrize("count", [1, 3])
def test_plotly_is_inlined_once(count: int) -> None:
    assert page_of(*[Figure(loss_figure())] * count).count(get_plotlyjs()) == 1


def test_a_page_without_figures_has_no_plotly() -> None:
    html = page_of(*every_block("plain")[:7])
    assert "plotly" not in html.lower()
    assert len(html) < 30_000


def test_a_figure_inside_nested_details_brings_plotly() -> None:
    html = page_of(Details("outer", [Details("inner", [Figure(loss_figure(), "A caption.")])]))
    assert html.count(get_plotlyjs()) == 1
    assert len(figures_in(html)) == 1


def test_tags_are_balanced_and_ids_unique() -> None:
    html = without_plotly(hostile_page())
    elements = Elements(html)
    assert elements.unbalanced == []
    assert elements.stack == []
    ids = [attributes["id"] for _, attributes, _ in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_contents_point_to_sections_even_when_titles_repeat() -> None:
    titles = ["Loss", "Loss", "損失", "", "Loss 2"]
    elements = Elements(Page("p", sections=[Section(title, []) for title in titles]).to_html())
    links = [attributes["href"] for attributes, _ in elements.all("a") if attributes.get("class") != "skip"]
    sections = [f"#{attributes['id']}" for attributes, _ in elements.all("section")]
    assert links == sections
    assert len(set(links)) == len(titles)


def test_a_section_with_the_title_of_its_page_does_not_repeat_it() -> None:
    html = Page("Judgments", sections=[Section("Judgments", []), Section("Labels", [])]).to_html()
    assert '<h2 id="section-judgments-title" class="hidden">Judgments</h2>' in html  # for readers of the outline
    assert '<h2 id="section-labels-title">Labels</h2>' in html


def test_headings_are_in_order_and_the_language_is_set() -> None:
    elements = Elements(page_of(*every_block("plain")))
    assert [tag for tag, _, _ in elements.found if re.fullmatch("h[1-6]", tag)] == ["h1", "h2"]
    assert elements.all("html")[0][0]["lang"] == "en"


def test_figures_have_a_role_a_description_and_a_word_for_readers_without_scripts() -> None:
    elements = Elements(page_of(Figure(loss_figure(), caption="Loss by step.", alt="Loss falls from 3.0 to 2.2.")))
    (area,) = elements.all("div", "plot-area")
    assert area[0]["role"] == "img"
    assert area[0]["aria-label"] == "Loss falls from 3.0 to 2.2."
    assert "JavaScript" in elements.texts("noscript")[0]


def cells(table: Table) -> list[list[str]]:
    html = page_of(table)
    rows = Elements(html).texts("td")
    width = len(table.columns)
    return [rows[start : start + width] for start in range(0, len(rows), width)]


def test_table_columns_share_their_decimals() -> None:
    rows: list[list[Cell]] = [["web", 0.9, 0.0031, 1234], ["code", 0.6125, 0.012, 7], ["all", None, 0.1, 9]]
    assert cells(Table(["domain", "bpb", "error", "n"], rows)) == [
        ["web", "0.9000", "0.0031", "1,234"],
        ["code", "0.6125", "0.0120", "7"],
        ["all", "—", "0.1000", "9"],
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0], ["1", "2"]),
        ([1.0, 1.5, 2.25], ["1.00", "1.50", "2.25"]),
        ([1e-5, 2.94e-4, 0.0], ["1.00e-5", "2.94e-4", "0"]),
        ([1e-5, 12.5], ["1e-5", "12.5"]),
        ([float("nan"), 0.5], ["NaN", "0.5"]),
        ([True, None], ["yes", "—"]),
        ([1234567.891, -2.0], ["1,234,568", "-2"]),
        ([1234.5, 20.25, -1.0], ["1,234.5", "20.2", "-1.0"]),
    ],
)
def test_numbers_in_a_table(values: Sequence[float | None], expected: list[str]) -> None:
    assert [row[0] for row in cells(Table(["v"], [[value] for value in values]))] == expected


def test_bounds_share_the_decimals_of_their_figures() -> None:
    alike: list[list[Cell]] = [
        ["a", 0.161, Bounds(0.08326, 0.2446)],
        ["b", 0.0482, Bounds(0.01, 0.09)],
        ["c", 0.5, None],
    ]
    assert [row[1:] for row in cells(Table(["measure", "circuit", "interval"], alike))] == [
        ["0.1610", "0.0833 to 0.2446"],
        ["0.0482", "0.0100 to 0.0900"],
        ["0.5000", "—"],
    ]
    apart: list[list[Cell]] = [
        ["a", 1.414e-8, Bounds(8.298e-9, 2.073e-8)],
        ["b", 1.0, Bounds(0.5, 1.0)],
        ["c", None, None],
    ]
    assert [row[1:] for row in cells(Table(["measure", "circuit", "interval"], apart))] == [
        ["1.41e-8", "8.30e-9 to 2.07e-8"],
        ["1.0", "0.5 to 1.0"],
        ["—", "—"],
    ]
    assert Bounds.of(None, 1.0) is None
    assert Bounds.of(float("nan"), 1.0) is None


def test_words_are_set_smaller_in_their_tile_than_numbers() -> None:
    html = Page("p", sections=[Section("s", [Facts({"n": "6,144", "model": "models/smollm2"})])]).to_html()
    assert "<div><dt>n</dt>" in html
    assert '<div class="wordy"><dt>model</dt>' in html


def test_number_columns_are_right_aligned_unless_told_otherwise() -> None:
    rows: list[list[Cell]] = [["a", 1, None, "x"], ["b", 2.5, 3, 4]]
    classes = [attributes["class"] for attributes, _ in Elements(page_of(Table(["a", "b", "c", "d"], rows))).all("th")]
    assert classes == ["left", "right", "right", "left"]
    told = Table(["a", "b", "c", "d"], rows, align=["right", "left", "left", "right"])
    assert [a["class"] for a, _ in Elements(page_of(told)).all("th")] == ["right", "left", "left", "right"]


def test_a_table_has_a_caption_scoped_headers_and_its_highlighted_row() -> None:
    elements = Elements(page_of(Table(["a"], [[1], [2], [3]], caption="Three.", highlight_row=1)))
    assert elements.texts("caption") == ["Three."]
    assert all(attributes["scope"] == "col" for attributes, _ in elements.all("th"))
    assert elements.texts("tr", "highlight") == ["2"]


def test_mistakes_in_blocks_are_errors() -> None:
    with pytest.raises(ValueError, match="Row 1 of a table has 1 cell for 2 columns"):
        Table(["a", "b"], [[1, 2], [3]])
    with pytest.raises(ValueError, match="highlight_row is 1, but the table has 1 rows"):
        Table(["a"], [[1]], highlight_row=1)
    with pytest.raises(ValueError, match=r"align has 2 entries for 1 column\."):
        Table(["a"], [[1]], align=["left", "left"])
    with pytest.raises(ValueError, match="not 'center'"):
        Table(["a"], [[1]], align=["center"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="info, good, warning, bad"):
        Note("text", kind="fatal")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["\n\n  leading", "trailing  \n", "\tif x:\n\t\treturn  1\n"])
def test_white_space_of_samples_and_code_is_kept(text: str) -> None:
    html = page_of(Sample(text, text), Code(text))
    assert f'<span class="prompt"><span class="hidden">Prompt: </span>{text}</span>' in html
    assert f'<span class="hidden">Completion: </span>{text}</span></pre>' in html
    assert f"<code>{text}</code></pre>" in html


def test_lines_of_code_have_tones_and_are_the_same_text() -> None:
    text = "+ <b>\n\n  x\n"
    html = page_of(Code(text, tones={0: "good", 2: "bad"}))
    (found,) = re.findall(r"<code>(.*?)</code>", html, re.DOTALL)
    assert re.findall(r'<span class="line([^"]*)">', found) == [" tone-good", "", " tone-bad"]
    assert unescape(re.sub(r"<[^>]*>", "", found)) == text
    assert [css for css in get_args(Tone) if f".tone-{css} " not in html] == []


def test_figures_in_columns_bring_their_scripts() -> None:
    block = Figure(loss_figure(), alt="loss")
    assert ("plotly" in page_of(Columns([[Paragraph("a")], [block]]))) == ("plotly" in page_of(block)) is True


def test_blank_lines_separate_paragraphs() -> None:
    assert Elements(page_of(Paragraph("One.\nStill one.\n\n \nTwo."))).texts("p", "prose") == [
        "One.\nStill one.",
        "Two.",
    ]


def test_equal_content_gives_an_equal_file() -> None:
    assert page_of(*every_block("plain")) == page_of(*every_block("plain"))


def test_generated_is_shown_only_when_given() -> None:
    assert "Generated 2026-01-02" in Page("p", generated="2026-01-02").to_html()
    assert "Generated" not in Page("p").to_html()


def test_write_returns_the_path_and_leaves_only_the_page(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    page = Page("Über 損失", sections=[Section("s", [Paragraph("é")])])
    assert page.write(path) == path
    assert path.read_text("utf-8") == page.to_html()
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_write_replaces_the_file_and_never_changes_the_old_one(tmp_path: Path) -> None:
    path, old = tmp_path / "report.html", tmp_path / "old.html"
    Page("First").write(path)
    os.link(path, old)
    Page("Second").write(path)
    assert "<h1>First</h1>" in old.read_text("utf-8")
    assert "<h1>Second</h1>" in path.read_text("utf-8")


def test_a_page_that_cannot_be_rendered_leaves_the_previous_file(tmp_path: Path) -> None:
    path = Page("First").write(tmp_path / "report.html")
    with pytest.raises(TypeError):
        Page("Second", sections=[Section("s", [Figure(go.Figure(layout={"meta": object()}))])]).write(path)
    assert "<h1>First</h1>" in path.read_text("utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_half_a_surrogate_pair_in_a_sample_is_replaced(tmp_path: Path) -> None:
    page = Page("p", sections=[Section("s", [Sample("a", "b\ud83d")])])
    path = page.write(tmp_path / "report.html")
    assert "b\ufffd" in path.read_text("utf-8")
