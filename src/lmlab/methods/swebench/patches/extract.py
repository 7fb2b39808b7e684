"""The patch in a model's answer."""

from __future__ import annotations

import re

_TAG = re.compile(r"<(\w+)>(.*?)</\1>", re.DOTALL)
_FENCE = re.compile(r"```(\w*)[^\n]*\n(.*?)```", re.DOTALL)
_NAMES = ("diff", "patch")
_END = "</s>"


def extract_patch(answer: str | None) -> str | None:
    """The patch in an answer: of all tagged spans, then all fenced ones, the first that is called `diff` or `patch`;
    else the first span of any name; else the text up to the end mark of a Llama model.

    Returns:
        None where there is no answer.
    """
    if answer is None:
        return None
    spans = [match.groups() for pattern in (_TAG, _FENCE) for match in pattern.finditer(answer)]
    for name, text in spans:
        if name in _NAMES:
            return str(text)
    if spans:
        return str(spans[0][1])
    return answer.split(_END)[0]
