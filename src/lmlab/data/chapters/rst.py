"""reStructuredText, as Sphinx extends it, as text: prose, code and formulas are kept; what only a site needs goes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lmlab.data.chapters.chapter import Part, tidy, without_indent

_UNDERLINE = re.compile(r"([!-/:-@\[-`{-~])\1{2,}\s*")
_DIRECTIVE = re.compile(r"(\s*)\.\. +(?:\|[^|]+\| +)?([\w:+.-]+?):: ?(.*)")
_EXPLICIT = re.compile(r"\s*\.\.(?:\s|$)")
_OPTION = re.compile(r"\s+:[\w-]+:(?:\s|$)")
_NAME_OF_ROLE = r"(?<![\w:.+-]):[\w:.+-]{1,80}:"
_ROLE_WITH_TARGET = re.compile(_NAME_OF_ROLE + r"`([^`<]*?)\s*<[^`>]*>`")
_ROLE = re.compile(_NAME_OF_ROLE + r"`([^`]*)`")
_MATH = re.compile(r":math:`([^`]*)`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`__?")
_REFERENCE = re.compile(r"`([^`]+)`__?")
_FOOTNOTE = re.compile(r"\s?\[(?:#[\w-]*|\d+|\w[\w.-]*)\]_(?!\w)")
_SUBSTITUTION = re.compile(r"\|([^|\s][^|]*)\|_?")
_KEPT_LINE = re.compile(r"\s*(?:(?:[-*+\u2022]|\d+[.)]|#\.|>>>|\|)(?:\s|$)|[=+]{3})")
_LITERAL = re.compile(r"``(.+?)``")

# whose body is prose
_PROSE = {
    "note", "warning", "tip", "hint", "important", "caution", "attention", "danger", "error", "admonition", "topic",
    "sidebar", "seealso", "versionadded", "versionchanged", "deprecated", "epigraph", "highlights", "pull-quote",
    "compound", "container", "rubric", "centered", "glossary", "function", "method", "class", "data", "exception",
    "attribute", "describe", "module-summary", "impl-detail", "dropdown", "details",
}  # fmt: skip
_CODE = {"code", "code-block", "sourcecode", "parsed-literal", "doctest", "literal", "highlight", "testcode", "prompt"}
_CAPTIONED = {"figure"}
_TABLES = {"table", "list-table", "csv-table"}


def read_rst(text: str) -> list[Part]:
    """The one chapter that a file holds; its title is the first heading."""
    blocks = [*_blocks(text.expandtabs().split("\n"), {})]
    title = next((each.lstrip("# ") for each in blocks if each.startswith("#")), "")
    found = tidy(blocks)
    return [Part(title, found)] if found else []


def _blocks(lines: list[str], levels: dict[str, int]) -> Iterator[str]:
    """Paragraphs, headings (behind `#`), code and formulas.

    Arguments:
        levels: the marks of headings in the order in which they were met, which is their rank.
    """
    place = 0
    while place < len(lines):
        line = lines[place]
        if not line.strip():
            place += 1
        elif heading := _heading(lines, place):
            mark, title, place = heading
            yield f"{'#' * min(levels.setdefault(mark, len(levels)) + 1, 6)} {_inline(title)}"
        elif found := _DIRECTIVE.fullmatch(line):
            body, place = _indented(lines, place + 1, len(found[1]))
            yield from _directive(found[2], found[3].strip(), body, levels)
        elif _EXPLICIT.match(line):  # a comment, a target, a footnote or citation
            body, place = _indented(lines, place + 1, len(line) - len(line.lstrip()))
            if note := re.match(r"\s*\.\. \[[^\]]+\]\s+(.*)", line):
                yield " ".join(_inline(each.strip()) for each in (note[1], *body) if each.strip())
        else:
            end = place
            while end < len(lines) and lines[end].strip() and not (end > place and _DIRECTIVE.fullmatch(lines[end])):
                end += 1
            paragraph, place = "\n".join(lines[place:end]), end
            is_literal = paragraph.rstrip().endswith("::")
            if is_literal:
                paragraph = re.sub(r"(\s+)?::$", lambda m: "" if m[1] else ":", paragraph.rstrip())
            if paragraph.strip():
                yield _paragraph(paragraph)
            if is_literal:
                depth = len(line) - len(line.lstrip())
                body, place = _indented(lines, place, depth)
                if body:
                    yield _code(body)


def _paragraph(text: str) -> str:
    """Lines of prose as one; of lists, tables and quoted lines each as it is."""
    lines = without_indent(text.split("\n"))
    if all(re.fullmatch(r"[=+\-| ]*", line) for line in lines):
        return ""
    if any(_KEPT_LINE.match(line) for line in lines):
        return "\n".join(_inline(line) for line in lines if not re.fullmatch(r"[=+\- ]{3,}", line))
    return _inline(" ".join(line.strip() for line in lines))


def _heading(lines: list[str], place: int) -> tuple[str, str, int] | None:
    """The mark of a heading, its title, and where the text goes on."""
    line = lines[place].rstrip()
    following = lines[place + 1].rstrip() if place + 1 < len(lines) else ""
    if _UNDERLINE.fullmatch(line) and place + 2 < len(lines):
        below = lines[place + 2].rstrip()
        if following.strip() and _UNDERLINE.fullmatch(below) and below[0] == line[0]:
            return line[0] * 2, following.strip(), place + 3
    is_title = not line.startswith(" ") and not _UNDERLINE.fullmatch(line)
    if is_title and _UNDERLINE.fullmatch(following) and len(following) >= min(len(line), 4):
        return following[0], line, place + 2
    return None


def _directive(name: str, argument: str, body: list[str], levels: dict[str, int]) -> Iterator[str]:
    options = 0
    while options < len(body) and _OPTION.match(body[options]):
        options += 1
    inner = without_indent(body[options:])
    name = name.rpartition(":")[2]
    if name == "math":
        formula = "\n".join([argument, *inner]).strip()
        if formula:
            yield f"$$\n{formula}\n$$"
    elif name in _CODE:
        if any(line.strip() for line in inner):
            yield _code(inner)
    elif name in _CAPTIONED or name in _TABLES:
        yield from _blocks([*([argument, ""] if name in _TABLES and argument else []), *inner], levels)
    elif name in _PROSE:
        if name in ("versionadded", "versionchanged", "deprecated"):
            return  # the history of a program, not of its subject
        if argument:
            yield _inline(argument)
        yield from _blocks(inner, levels)


def _indented(lines: list[str], place: int, depth: int) -> tuple[list[str], int]:
    """The lines that are indented more than `depth`, and where the text goes on."""
    end = place
    while end < len(lines) and (not lines[end].strip() or len(lines[end]) - len(lines[end].lstrip()) > depth):
        end += 1
    body = lines[place:end]
    while body and not body[0].strip():
        body = body[1:]
    while body and not body[-1].strip():
        body = body[:-1]
    return body, end


def _code(lines: list[str]) -> str:
    shown = without_indent(lines)
    while shown and not shown[0].strip():
        shown = shown[1:]
    return "\n".join(f"    {line}".rstrip() for line in shown)


def _inline(text: str) -> str:
    """Prose without the marks of links and roles; formulas between dollar signs."""
    kept: list[str] = []

    def keep(shown: str) -> str:
        kept.append(shown)
        return f"\x00{len(kept) - 1}\x00"

    text = text.replace("\x00", "")
    text = _LITERAL.sub(lambda match: keep(f"`{match[1]}`"), text)
    text = _MATH.sub(lambda match: keep(f"${match[1]}$"), text)
    text = _ROLE_WITH_TARGET.sub(r"\1", text)
    text = _ROLE.sub(lambda match: match[1].lstrip("~!").rpartition("~")[2], text)
    text = _LINK.sub(r"\1", text)
    text = _REFERENCE.sub(r"\1", text)
    text = _FOOTNOTE.sub("", text)
    text = _SUBSTITUTION.sub(r"\1", text)
    return re.sub(r"\x00(\d+)\x00", lambda match: kept[int(match[1])], text)
