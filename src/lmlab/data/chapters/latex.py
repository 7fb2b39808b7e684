"""LaTeX as text: formulas, code and lists are kept; the preamble, comments and commands that only set type go."""

from __future__ import annotations

import re

from lmlab.data.chapters.chapter import Part, squeezed, tidy

# What opens is looked for up to where another one opens, so that thousands that never close take linear time.
_COMMENT = re.compile(r"(?<!\\)((?:\\\\)*)%[^\n]*")
_BODY = re.compile(r"\\begin\{document\}(.*?)(?:\\end\{document\}|\Z)", re.DOTALL)
_OPTIONS, _ARGUMENT = r"(?:\[[^\[\]]*\])?", r"\{((?:[^{}]|\{[^{}]*\})*)\}"
_VERBATIM = re.compile(
    rf"\\begin\{{(verbatim\*?|lstlisting|minted|Verbatim|alltt)\}}{_OPTIONS}(?:\{{[^{{}}]*\}})?"
    r"((?:(?!\\begin\{\1\}).)*?)\\end\{\1\}",
    re.DOTALL,
)
_MATH = re.compile(
    r"\\begin\{(equation|align|gather|multline|eqnarray|displaymath|math|alignat|flalign)(\*?)\}"
    r"(?:(?!\\begin\{\1).)*?\\end\{\1\2\}"
    r"|(?<!\\)\\\[(?:\\\\|(?!\\\[|\\\\).)*?\\\]|(?<!\\)\\\((?:\\\\|(?!\\\(|\\\\).)*?\\\)"
    r"|\$\$.*?\$\$|(?<!\\)\$(?:\\.|[^$\\])+\$",
    re.DOTALL,
)
_DROPPED_ENVIRONMENT = re.compile(
    r"\\begin\{(figure|table|tikzpicture|thebibliography|filecontents)(\*?)\}((?:(?!\\begin\{\1).)*?)"
    r"\\end\{\1\2\}",
    re.DOTALL,
)
_CAPTION = re.compile(rf"\\caption{_OPTIONS}{_ARGUMENT}")
_SECTION = re.compile(rf"\\(part|chapter|section|subsection|subsubsection|paragraph)\*?{_OPTIONS}{_ARGUMENT}")
_NOTHING = re.compile(
    r"\\(?:label|cite[tp]?\*?|ref|eqref|pageref|index|includegraphics|bibliography|bibliographystyle|input|include"
    r"|vspace\*?|hspace\*?|usepackage|documentclass|newcommand|renewcommand|pagestyle|thispagestyle|setcounter"
    r"|addcontentsline|autoref|cref|Cref)(?:\[[^\[\]]*\])*(?:\{(?:[^{}]|\{[^{}]*\})*\})*"
)
_WITH_TITLE = re.compile(rf"\\title{_OPTIONS}{_ARGUMENT}")
_ITEM = re.compile(r"\\item\s*(?:\[([^\[\]]*)\])?\s*")
_LINE_OF_ITEM = re.compile(r"(?<![\n \t])[\n \t]*\\item")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{[\w*]+\}(?:\[[^\[\]]*\])?")
_HREF = re.compile(r"\\href\{[^{}]*\}\{([^{}]*)\}")
_WITH_TEXT = re.compile(r"\\[A-Za-z]+\*?(?:\[[^\[\]]*\])?\{((?:[^{}])*)\}")
_COMMAND = re.compile(r"\\([A-Za-z]+)\*?[ \t]*")
_ESCAPED = re.compile(r"\\([%&#_${}])")
_LEVELS = {"part": 1, "chapter": 1, "section": 2, "subsection": 3, "subsubsection": 4, "paragraph": 5}
_WORDS = {"LaTeX": "LaTeX", "TeX": "TeX", "ldots": "...", "dots": "...", "S": "\u00a7"}
_MOST_NESTED = 8  # commands within commands: each takes a pass over the text; deeper ones lose only their layout
_CHAPTER = re.compile(r"(?m)^# ")


def read_latex(text: str) -> list[Part]:
    """The chapters of a document, by `\\chapter`; a document without them is one."""
    title = _WITH_TITLE.search(text)
    if body := _BODY.search(text):
        text = body[1]
    kept: list[str] = []

    def keep(shown: str) -> str:
        kept.append(shown)
        return f"\x00{len(kept) - 1}\x00"

    def restored(shown: str) -> str:
        for _ in range(2):  # a formula may stand in a caption that is kept
            shown = re.sub(r"\x00(\d+)\x00", lambda match: kept[int(match[1])], shown)
        return shown

    text = text.replace("\x00", "")
    text = _VERBATIM.sub(lambda match: f"\n\n{keep(_indented(match[2]))}\n\n", text)
    text = _COMMENT.sub(r"\1", text)
    text = _MATH.sub(lambda match: keep(re.sub(r"\\label\{[^}]*\}", "", match[0])), text)
    text = _DROPPED_ENVIRONMENT.sub(lambda match: "\n\n" + " ".join(_CAPTION.findall(match[3])) + "\n\n", text)
    text = _SECTION.sub(lambda match: f"\n\n{'#' * _LEVELS[match[1]]} {match[2]}\n\n", text)
    text = _plain(text)
    blocks = [restored(each) for each in squeezed(text)]
    parts: list[list[str]] = [[]]
    for each in blocks:
        if _CHAPTER.match(each) and parts[-1]:
            parts.append([])
        parts[-1].append(each)
    found = [Part(_title(each) or (_plain(title[1]).strip() if title else ""), tidy(each)) for each in parts]
    return [each for each in found if each.text]


def _plain(text: str) -> str:
    """Prose without commands; what a command sets is kept."""
    text = _NOTHING.sub("", text)
    text = _HREF.sub(r"\1", text)
    text = _LINE_OF_ITEM.sub("\n\n\\\\item", text)
    text = _ITEM.sub(lambda match: f"- {match[1]}: " if match[1] else "- ", text)
    text = _ENVIRONMENT.sub("\n\n", text)
    text = _ESCAPED.sub(lambda match: f"\x01{ord(match[1])}\x01", text)
    for _ in range(_MOST_NESTED):
        inner = _WITH_TEXT.sub(r"\1", text)
        if inner == text:
            break
        text = inner
    text = re.sub(r"\\\\(?:\[[^\[\]]*\])?", "\n", text)
    text = _COMMAND.sub(lambda match: _WORDS.get(match[1], ""), text)
    text = text.replace("~", " ").replace("``", "\u201c").replace("''", "\u201d").replace("---", "\u2014")
    text = text.replace("{", "").replace("}", "")
    return re.sub(r"\x01(\d+)\x01", lambda match: chr(int(match[1])), text)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.strip("\n").split("\n"))


def _title(blocks: list[str]) -> str:
    return next((each.lstrip("# ") for each in blocks if each.startswith("#")), "")
