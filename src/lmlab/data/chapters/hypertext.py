"""HTML as text: the page's main part without what leads elsewhere; formulas as their LaTeX."""

from __future__ import annotations

from html.parser import HTMLParser

from lmlab.data.chapters.chapter import Part, flowed, tidy, without_indent

_DROPPED = {
    "script", "style", "nav", "aside", "noscript", "template", "svg", "button", "form", "select", "iframe", "head",
    "object", "video", "audio", "canvas",
}  # fmt: skip
_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_CLASSES = {"navheader", "navfooter", "sphinxsidebar", "headerlink", "toc", "breadcrumb", "breadcrumbs", "related"}
_ROLES = {"navigation", "banner", "contentinfo", "search", "complementary"}
_BLOCKS = {
    "p", "div", "section", "article", "main", "body", "blockquote", "ul", "ol", "dl", "dd", "dt", "table", "tr",
    "figure", "figcaption", "header", "footer", "h1", "h2", "h3", "h4", "h5", "h6", "li", "pre", "caption",
}  # fmt: skip
_HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
_MAIN = {"main", "article"}
_DEEPEST = 512  # as in browsers; the parser looks through all that is open at each tag


def read_html(text: str) -> list[Part]:
    """The one chapter of a page: what its `main` or `article` holds, or else its body; the title is its first heading,
    or the page's.

    Raises:
        ValueError: elements are nested too deeply.
    """
    page = _Page()
    page.feed(_closed(text))
    page.close()
    page.flush()
    blocks = page.main or page.blocks
    title = next((each.lstrip("# ") for each in blocks if each.startswith("# ")), page.title)
    found = tidy(blocks)
    return [Part(title, found)] if found else []


def _closed(text: str) -> str:
    """The text without the beginnings of comments and sections that never end: the parser would look for the end of
    each through all that follows.
    """
    for opens, closes in (("<!--", "-->"), ("<![", "]")):
        last = text.rfind(closes) + 1
        text = text[:last] + text[last:].replace(opens, "")
    return text


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[str] = []
        self.main: list[str] = []
        self.title = ""
        self._open: list[str] = []
        self._dropped_at: int | None = None  # how deep the element is that is left out
        self._line: list[str] = []
        self._lists: list[list[int]] = []
        self._mark = ""
        self._tex: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "br":
            self._line.append("\n" if "pre" in self._open else " ")
        elif tag == "img" and "math" in given.get("class", "").split():
            self._line.append(f"${given.get('alt', '').strip('$ ')}$")
        if tag in _VOID:
            return
        if tag in ("p", "li", "dt", "dd", "tr", "td", "th"):
            self._close_implied(tag)
        if tag in _BLOCKS:
            self.flush()
        if len(self._open) >= _DEEPEST:
            raise ValueError(f"elements are nested deeper than {_DEEPEST}")
        self._open.append(tag)
        if self._dropped_at is None and self._is_dropped(tag, given):
            self._dropped_at = len(self._open)
        if tag == "math" and self._dropped_at is None:
            if shown := given.get("alttext"):
                self._line.append(f"${shown}$")
            self._tex = []
            self._dropped_at = len(self._open)
        if tag in ("ul", "ol"):
            self._lists.append([0] if tag == "ol" else [])
        if tag == "li" and self._dropped_at is None:
            self._mark = "- "
            if self._lists and self._lists[-1]:
                self._lists[-1][0] += 1
                self._mark = f"{self._lists[-1][0]}. "
        if tag in ("td", "th") and "".join(self._line).strip():
            self._line.append(" | ")

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID or tag not in self._open:
            return
        if tag in _BLOCKS:
            self.flush()
        while self._open:
            if self._open[-1] == "math" and self._tex is not None:
                if self._tex and not (self._line and self._line[-1].startswith("$")):
                    self._line.append(f"${''.join(self._tex).strip()}$")
                self._tex = None
            if self._dropped_at == len(self._open):
                self._dropped_at = None
            if self._open[-1] in ("ul", "ol") and self._lists:
                self._lists.pop()
            if self._open[-1] == "li":
                self._mark = ""  # of an item without text
            if self._open.pop() == tag:
                return

    def handle_data(self, data: str) -> None:
        if "title" in self._open and "head" in self._open:
            self.title += flowed(data)
        elif self._tex is not None and "annotation" in self._open:
            self._tex.append(data)
        elif self._dropped_at is None:
            if self._line and self._open and self._open[-1] in ("sup", "sub") and data.strip():
                data = ("^" if self._open[-1] == "sup" else "_") + data
            self._line.append(data)

    def flush(self) -> None:
        """End the paragraph."""
        text, self._line = "".join(self._line), []
        if "pre" in self._open:
            lines = without_indent(text.strip("\n").split("\n"))
            text = "\n".join(f"    {line}".rstrip() for line in lines) if text.strip() else ""
        else:
            text = flowed(text)
        if not text:
            return
        heading = next((each for each in reversed(self._open) if each in _HEADINGS), None)
        if heading:
            text = f"{'#' * int(heading[1])} {text}"
        elif self._mark:
            text, self._mark = self._mark + text, ""
        self.blocks.append(text)
        if not _MAIN.isdisjoint(self._open):
            self.main.append(text)

    def _close_implied(self, tag: str) -> None:
        """End what HTML lets end by itself: a paragraph before another, an item of a list before the next."""
        ends = {"li": ("li", "p"), "tr": ("tr", "td", "th"), "td": ("td", "th"), "th": ("td", "th")}
        ends |= {"p": ("p",), "dt": ("dt", "dd"), "dd": ("dt", "dd")}
        while self._open and self._open[-1] in ends[tag]:
            self.handle_endtag(self._open[-1])

    @staticmethod
    def _is_dropped(tag: str, given: dict[str, str]) -> bool:
        classes = set(given.get("class", "").lower().split())
        return tag in _DROPPED or not classes.isdisjoint(_CLASSES) or given.get("role") in _ROLES
