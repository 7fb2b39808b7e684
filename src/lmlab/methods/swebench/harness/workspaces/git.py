"""git on trees of strangers: no hooks, no configuration but ours, no file protocol, fixed authors and dates."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lmlab.errors import LmlabError, UserError

VARIABLES = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_AUTHOR_NAME": "lmlab",
    "GIT_AUTHOR_EMAIL": "lmlab@localhost",
    "GIT_AUTHOR_DATE": "1970-01-01T00:00:00+0000",
    "GIT_COMMITTER_NAME": "lmlab",
    "GIT_COMMITTER_EMAIL": "lmlab@localhost",
    "GIT_COMMITTER_DATE": "1970-01-01T00:00:00+0000",
    "LC_ALL": "C.UTF-8",
    "HOME": "/nonexistent",
}
SAFE = (
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "protocol.file.allow=never",
    "-c",
    "safe.directory=*",
    "-c",
    "core.autocrlf=false",
    "-c",
    "core.quotePath=true",
    "-c",
    "gc.auto=0",
    "-c",
    "commit.gpgSign=false",
)


def git(folder: Path, *arguments: str, stdin: bytes | None = None, check: bool = True) -> bytes:
    """Run git in a folder; what it prints.

    Raises:
        UserError: git is not installed.
        LmlabError: it failed, and `check` is set.
    """
    done = run_git(folder, arguments, stdin)
    if check and done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise LmlabError(f"git {arguments[0]} failed in '{folder}': {said[-1][:300] if said else done.returncode}.")
    return done.stdout


def run_git(folder: Path, arguments: Sequence[str], stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run git in a folder, whatever comes of it."""
    variables = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), **VARIABLES}
    try:
        return subprocess.run(
            ["git", *SAFE, *arguments], cwd=folder, input=stdin or b"", capture_output=True, env=variables, check=False
        )
    except FileNotFoundError:
        if not folder.is_dir():
            raise UserError(f"No such folder: '{folder}'.") from None
        raise UserError("git is not installed.", "Run: apt-get install git") from None


def commit_tree(folder: Path) -> None:
    """Make a folder a repository with exactly one commit, whose name is a function of the tree."""
    git(folder, "init", "-q", "--initial-branch=main")
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "-q", "--allow-empty", "-m", "base")
    for name in ("hooks", "logs", "description", "info"):
        place = folder / ".git" / name
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
