"""The criteria of SWE-bench Lite: instances that can be understood from their text alone, and solved in one place."""

from __future__ import annotations

import re

from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.patches.diff import read_diff

_MEDIA = re.compile(r"\.(?:png|jpe?g|gif|bmp|svg|webp|tiff?|mp4|webm|mov|avi)\b", re.IGNORECASE)
_LINK = re.compile(r"https?://[^\s)>\]\"']+")
_COMMIT = re.compile(r"(?<![\w/])[0-9a-f]{40}(?!\w)")
_REFERENCE = re.compile(r"(?<![\w&/])#\d+\b|\b(?:issue|pull request|PR)\s+#?\d+\b", re.IGNORECASE)
_MESSAGE = re.compile(
    r"pytest\.(?:raises|warns|deprecated_call)\([^\n]*match|self\.assert(?:Output|Raises)|checks\.Error"
)
_FEWEST_WORDS, _MOST_HUNKS = 40, 3  # the rules of SWE-bench Lite


def lite_criteria(instance: Instance) -> list[str]:
    """Why an instance does not belong into Lite; nothing if it does."""
    found = []
    text = instance.problem_statement
    if _MEDIA.search(text):
        found.append("the issue has an image or video")
    own = f"github.com/{instance.repo}".lower()
    if any(own not in link.lower() for link in _LINK.findall(text)):
        found.append("the issue links elsewhere")
    if _COMMIT.search(_LINK.sub("", text)):
        found.append("the issue names a commit")
    if _REFERENCE.search(_LINK.sub("", text)):
        found.append("the issue refers to another one")
    if len(text.split()) < _FEWEST_WORDS:
        found.append(f"the issue has fewer than {_FEWEST_WORDS} words")
    files = read_diff(instance.patch)
    if len(files) > 1:
        found.append("the solution edits several files")
    if sum(len(file.hunks) for file in files) > _MOST_HUNKS:
        found.append(f"the solution has more than {_MOST_HUNKS} hunks")
    if any(file.old is None or file.new is None for file in files):
        found.append("the solution creates or removes files")
    added = "".join(line for file in read_diff(instance.test_patch) for hunk in file.hunks for line in hunk.added)
    if _MESSAGE.search(added):
        found.append("the tests check the words of an error")
    return found
