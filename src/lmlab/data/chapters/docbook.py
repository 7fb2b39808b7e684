"""DocBook: each chapter of a book, or the article or section that a file holds, as text.

Nothing that a file names is fetched: external entities stand for nothing, so that a document can neither read files nor
grow beyond bounds.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from xml.etree import ElementTree

from lmlab.data.chapters.chapter import Part, flowed, tidy, without_indent

_DOCTYPE = re.compile(r"<!DOCTYPE[^\[<>]*(?:\[(.*?)\]\s*)?>", re.DOTALL)
_ENTITY = re.compile(r"<!ENTITY\s+([\w.-]+)\s+(?:\"([^\"]*)\"|'([^']*)')\s*>")
_REFERENCE = re.compile(r"&([A-Za-z][\w.-]*);")
_OF_XML = ("amp", "lt", "gt", "quot", "apos")
_MOST_EXPANSIONS, _LONGEST_ENTITY = 4, 10_000  # one in another, and characters: a few lines can spell gigabytes
_XML_DECLARATION = re.compile(r"<\?xml[^<>]*\?>")

_CHAPTERS = {"chapter", "appendix", "preface", "article", "refentry"}
_SECTIONS = {
    *_CHAPTERS, "book", "part", "section", "simplesect", "sect1", "sect2", "sect3", "sect4", "sect5",
    "refsect1", "refsect2", "refsect3", "reference",
}  # fmt: skip
_DROPPED = {
    "indexterm", "index", "toc", "bookinfo", "chapterinfo", "articleinfo", "sectioninfo", "sect1info", "sect2info",
    "sect3info", "info", "authorgroup", "author", "remark", "imageobject", "imagedata", "graphic", "inlinegraphic",
    "titleabbrev", "xref", "footnoteref", "revhistory", "keywordset", "refmeta", "textobject", "screeninfo", "co",
}  # fmt: skip
_VERBATIM = {"programlisting", "screen", "literallayout", "synopsis", "address"}
_LISTS = {"itemizedlist", "orderedlist", "simplelist", "procedure", "substeps"}
_BLOCKS = {
    *_SECTIONS, *_VERBATIM, *_LISTS, "para", "simpara", "formalpara", "variablelist", "varlistentry", "term",
    "listitem", "step", "member", "note", "tip", "warning", "caution", "important", "sidebar", "blockquote", "example",
    "informalexample", "figure", "informalfigure", "table", "informaltable", "tgroup", "thead", "tbody", "row",
    "mediaobject", "screenshot", "caption", "equation", "informalequation", "title", "subtitle", "qandaset",
    "qandaentry", "question", "answer", "abstract", "epigraph", "legalnotice", "refnamediv", "bibliography",
    "bibliomixed", "glossary", "glossentry", "glossdef", "glossterm", "segmentedlist",
}  # fmt: skip


def read_docbook(text: str) -> list[Part]:
    """The chapters of a document.

    Raises:
        ValueError: it is not well-formed.
    """
    root = _parse(text)
    found = [_part(each) for each in [*_outermost(root)] or list(root)]
    return [each for each in found if each.text]


def _outermost(root: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """The chapters that stand in no other, in their order."""
    left = [root]
    while left:
        element = left.pop()
        if _name(element) in _CHAPTERS:
            yield element
        else:
            left += reversed(element)


def _parse(text: str) -> ElementTree.Element:
    """The document below one root of ours, since parts of books are files without one."""
    entities: dict[str, str] = {}
    if found := _DOCTYPE.search(text):
        for name, double, single in _ENTITY.findall(found[1] or ""):
            entities.setdefault(name, double or single)
        text = text[: found.start()] + "\n" * found[0].count("\n") + text[found.end() :]
    text = _XML_DECLARATION.sub("", text)

    def known(match: re.Match[str]) -> str:
        name = match[1]
        if name in _OF_XML:
            return match[0]
        if name in entities:
            return entities[name][:_LONGEST_ENTITY]
        found = html.unescape(match[0])
        # of an entity that is defined elsewhere (&kstars;) its name is as near as one comes
        return name if found == match[0] else found

    for _ in range(_MOST_EXPANSIONS):
        expanded = _REFERENCE.sub(known, text)
        # growth of prose with names is far less, of a bomb far more
        if expanded == text or len(expanded) > 4 * len(text) + _LONGEST_ENTITY:
            break
        text = expanded
    text = _REFERENCE.sub(lambda match: match[0] if match[1] in _OF_XML else match[1], text)
    try:
        return ElementTree.fromstring(f"<lmlab>{text}</lmlab>")
    except ElementTree.ParseError as error:
        line = error.position[0]
        raise ValueError(f"line {line}: not well-formed XML ({str(error).partition(':')[0]})") from None


def _part(element: ElementTree.Element) -> Part:
    found = _child(element, "title")
    title = "" if found is None else _inline(found)
    return Part(title, tidy([f"# {title}", *_blocks(element, 1)] if title else [*_blocks(element, 1)]))


def _blocks(element: ElementTree.Element, depth: int) -> Iterator[str]:
    """The paragraphs below an element. Text that stands between blocks is a paragraph too."""
    pending = element.text or ""
    for child in element:
        name = _name(child)
        if name in _BLOCKS:
            if pending.strip():
                yield flowed(pending)
            pending = child.tail or ""
            if not (name == "title" and _name(element) in _SECTIONS):
                yield from _block(child, name, depth)
        else:
            pending += _inline(child, keep_spaces=True) + (child.tail or "")
    if pending.strip():
        yield flowed(pending)


def _block(element: ElementTree.Element, name: str, depth: int) -> Iterator[str]:
    if name in _SECTIONS:
        title = _child(element, "title")
        if title is not None:
            yield f"{'#' * min(depth + 1, 6)} {_inline(title)}"
        yield from _blocks(element, depth + 1)
    elif name in _VERBATIM:
        text = "".join(element.itertext()).strip("\n")
        yield "\n".join(f"    {line}".rstrip() for line in without_indent(text.split("\n")))
    elif name in _LISTS:
        for number, item in enumerate((each for each in element if _name(each) in ("listitem", "step", "member")), 1):
            mark = f"{number}. " if name in ("orderedlist", "procedure", "substeps") else "- "
            yield mark + "\n\n".join(_blocks(item, depth))
    elif name in ("varlistentry", "glossentry"):
        terms = [_inline(each) for each in element if _name(each) in ("term", "glossterm")]
        inner = "\n\n".join(
            text for each in element if _name(each) in ("listitem", "glossdef") for text in _blocks(each, depth)
        )
        yield f"- {', '.join(terms)}: {inner}"
    elif name == "row":
        yield " | ".join(_inline(each) for each in element)
    elif name in ("thead", "tbody"):
        yield "\n".join(" | ".join(_inline(cell) for cell in row) for row in element)
    else:
        yield from _blocks(element, depth)


def _inline(element: ElementTree.Element, keep_spaces: bool = False) -> str:
    """The text of an element that stands within a line."""
    name = _name(element)
    if name in _DROPPED:
        return ""
    parts = [element.text or ""]
    for child in element:
        parts += [_inline(child, keep_spaces=True), child.tail or ""]
    text = "".join(parts)
    match name:
        case "superscript":
            text = f"^{text.strip()}"
        case "subscript":
            text = f"_{text.strip()}"
        case "quote":
            text = f"\u201c{text.strip()}\u201d"
        case "footnote":
            text = f" ({flowed(text)})"
        case "para" | "simpara":
            text = f" {text} "
    return text if keep_spaces else flowed(text)


def _child(element: ElementTree.Element, name: str) -> ElementTree.Element | None:
    infos = [each for each in element if _name(each).endswith("info")]
    return next((each for holder in (element, *infos) for each in holder if _name(each) == name), None)


def _name(element: ElementTree.Element) -> str:
    """The tag without its namespace; nothing for comments."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
