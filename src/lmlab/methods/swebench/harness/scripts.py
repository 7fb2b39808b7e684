"""Evaluation scripts (`eval.sh`) as the public harness runs them in its images: read, and written."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence

from lmlab.errors import UserError
from lmlab.methods.swebench.grading.logs import END, EXIT_CODE, START
from lmlab.methods.swebench.patches.diff import read_diff

_HERE = re.compile(r"<<-?\s*(['\"]?)([\w-]+)\1\s*$")
_END_OF_PATCH = "EOF_114329324912"
_STATUS, _REMOVE = "lmlab_status=$?", "rm -f -- "


def script_of_tests(script: str, without: Collection[str] = ()) -> str:
    """What an evaluation script does besides git: it makes the environment active, installs, and runs the tests.

    The tree is put in order from outside, so that lines of git are left out, and so are the patch that one of them
    reads, the removal of files that it creates (`eval_script`), and the marks, which code could print too. The script
    ends as the tests do.

    Arguments:
        without: names of tests that are left out of the commands between the marks, so that these run all there are.

    Raises:
        UserError: some of them do not stand there as words.
    """
    lines: list[str] = []
    until: str | None = None
    left, inside = set(without), False
    for line in script.splitlines():
        text = line.strip()
        inside = (inside or START in text) and END not in text
        if inside and without:
            for name in sorted(without, key=len, reverse=True):
                line, count = re.subn(rf"(?<!\S)(['\"]?){re.escape(name)}\1(?!\S)", "", line)
                left -= {name} if count else set()
        if until is not None:
            until = None if text == until else until
        elif text.startswith("git ") or text.startswith(": '>>>>>"):
            if (match := _HERE.search(text)) is not None:
                until = match[2]
            elif END in text and _STATUS not in lines:  # a second one would be the status of the first
                lines.append(_STATUS)
        elif not text.startswith(("#!", _REMOVE)):
            lines.append(line.rstrip() if inside and without else line)
    if left:
        raise UserError(
            f"The script does not name its tests as the test patch does ({sorted(left)[0]}), so that it cannot be told"
            " how all tests are run.",
            "Leave out --full-suite.",
        )
    return "\n".join([*lines, "exit $lmlab_status"] if _STATUS in lines else lines)


def eval_script(
    base_commit: str, test_patch: str, files: Sequence[str], command: Sequence[str], before: Sequence[str] = ()
) -> str:
    """An `eval.sh` for a container that has the repository at /testbed.

    Arguments:
        files: test files that are run.
        command: that runs them.
        before: commands, such as one that installs the repository.

    Raises:
        UserError: the test patch has the line that ends it in the script.
    """
    if _END_OF_PATCH in test_patch.splitlines():
        raise UserError(f"The test patch has the line '{_END_OF_PATCH}'.")
    changed = read_diff(test_patch)
    known = sorted({each.old for each in changed if each.old is not None})
    created = sorted({each.new for each in changed if each.new is not None} - set(known))
    # Never without paths: that would put back the whole tree, the model's patch included
    restore = [f"git checkout {shlex.quote(base_commit or 'HEAD')} -- {shlex.join(known)}"] if known else []
    clean = [f"{_REMOVE}{shlex.join(created)}"] if created else []
    text = [
        "#!/bin/bash",
        "set -uxo pipefail",
        "cd /testbed",
        "git config --global --add safe.directory /testbed",
        "git status",
        "git show --stat",
        *before,
        *restore,
        *clean,
    ]
    if test_patch.strip():
        ended = test_patch if test_patch.endswith("\n") else test_patch + "\n"
        text += [f"git apply -v - <<'{_END_OF_PATCH}'\n{ended}{_END_OF_PATCH}"]
    text += [
        f": '{START}'",
        shlex.join([*command, *files]),
        _STATUS,
        f": '{END}'",
        f'echo "{EXIT_CODE}: $lmlab_status"',
        *restore,
        *clean,
    ]
    return "\n".join(text) + "\n"
