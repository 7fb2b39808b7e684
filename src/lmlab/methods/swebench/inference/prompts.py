"""The question that a model is asked, with tags and numbering that published checkpoints know."""

from __future__ import annotations

from typing import Literal

from lmlab.methods.swebench.inference.contexts import Context

Style = Literal["style-2", "style-3", "full_file_gen"]

_PREMISE = "Below are part of a code base and an issue that describes a problem to be solved in it."
EXAMPLE = "\n".join(
    (
        "<patch>",
        "--- a/shapes/area.py",
        "+++ b/shapes/area.py",
        "@@ -4,5 +4,5 @@",
        " def rectangle(width, height):",
        "     if width < 0 or height < 0:",
        '         raise ValueError("negative length")',
        "-    return width + height",
        "+    return width * height",
        " ",
        "</patch>",
    )
)
_ANSWER = "Answer with one patch in the unified format that `git apply` takes, between <patch> and </patch>:"
_FORMAT = (
    "A patch names each file by two lines, --- a/PATH and +++ b/PATH. A hunk begins with"
    " @@ -START,COUNT +START,COUNT @@ and holds unchanged lines after a blank, removed ones after a minus, added ones"
    " after a plus."
)
_WHOLE = (
    "Answer with the whole text of every file that you change, without line numbers, each between the lines"
    " [start of PATH] and [end of PATH]."
)


def shown(path: str, text: str) -> str:
    """A file as a prompt shows it."""
    return f"[start of {path}]\n{text}\n[end of {path}]"


def make_prompt(statement: str, context: Context, style: Style = "style-2") -> str:
    """The whole prompt. Its first line is the system's message for chat models."""
    files = context.files
    if style == "full_file_gen":
        files = {path: _without_numbers(text) for path, text in files.items()}
    code = "\n".join(shown(path, text) for path, text in [*context.readmes.items(), *files.items()])
    issue = f"<issue>\n{statement.strip()}\n</issue>"
    parts = [_PREMISE, issue, f"<code>\n{code}\n</code>"]
    if style == "style-2":
        parts += [_ANSWER, EXAMPLE]
    elif style == "style-3":
        parts += [_FORMAT, EXAMPLE, "Solve the issue by one such patch.", "Write the patch now."]
    else:
        parts += [_WHOLE]
    return "\n".join(parts) + "\n\n"  # checkpoints were trained with exactly two line ends here


def messages_of(prompt: str) -> tuple[dict[str, str], ...]:
    """The prompt as messages of a chat."""
    system, _, user = prompt.partition("\n")
    return ({"role": "system", "content": system}, {"role": "user", "content": user})


def _without_numbers(text: str) -> str:
    return "\n".join(line.partition(" ")[2] for line in text.split("\n"))
