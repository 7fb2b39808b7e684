"""Benchmarks out of saved pull requests and issues of GitHub."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from swe_parts import BASE, FIXED, write_tree

from lmlab.errors import UserError
from lmlab.methods.swebench.building.collect import collect_github
from lmlab.methods.swebench.building.github import read_saved, resolved_issues, seconds_of
from lmlab.methods.swebench.building.settings import CollectConfig
from lmlab.methods.swebench.harness.workspaces.git import commit_tree, git
from lmlab.methods.swebench.harness.workspaces.trees import TreeStore


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Fixes #3, closes #12 and resolved #3", [3, 12]),
        ("fix #2. See #9; unfixed #8; prefixes #7", [2]),
        ("Close https://github.com/Owner/calc/issues/41", [41]),
        ("closes https://github.com/owner/other/issues/41", []),
        ("fixes https://github.com/owner/calcXissues/1 fixes https://githubXcom/owner/calc/issues/2", []),
        ("<!-- fixes #1 -->fixes\n#2", [2]),
    ],
)
def test_a_text_names_the_issues_that_it_resolves(text: str, found: list[int]) -> None:
    assert resolved_issues(text, "owner/calc.git") == found


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository in which pull request 7 was merged, and 8 squashed."""
    folder = tmp_path / "clone"
    write_tree(folder, BASE)
    commit_tree(folder)
    git(folder, "checkout", "-q", "-b", "work")
    write_tree(folder, FIXED)
    git(folder, "commit", "-q", "-a", "-m", "Add numbers")
    git(folder, "checkout", "-q", "main")
    write_tree(folder, {"calc/other.py": "x = 1\n"})
    git(folder, "add", "--all")
    git(folder, "commit", "-q", "-m", "Meanwhile")
    git(folder, "merge", "-q", "--no-ff", "work", "-m", "Merge pull request #7 from someone/work")
    write_tree(folder, {"calc/other.py": "x = 2\n", "tests/test_other.py": "def test_other():\n    pass\n"})
    git(folder, "add", "--all")
    git(folder, "commit", "-q", "-m", "Other\u2028(#8)")
    return folder


def _pull(number: int, **more: Any) -> dict[str, Any]:
    row = {"number": number, "title": "T", "body": "", "merged_at": "2024-05-01T00:00:00Z"}
    row |= {"created_at": "2024-04-01T00:00:00Z", "merge_commit_sha": None, "head": {"sha": "f" * 40}}
    return row | {"base": {"sha": "e" * 40, "repo": {"full_name": "owner/calc"}}} | more


def _issue(number: int, title: str, body: str) -> dict[str, Any]:
    return {"number": number, "title": title, "body": body, "state": "closed"}


def _write(folder: Path, files: dict[str, Any]) -> Path:
    for name, rows in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return folder


def test_pull_requests_of_the_api_become_candidates_with_their_issues(clone: Path, tmp_path: Path) -> None:
    commit = {"sha": "a" * 40, "commit": {"message": "fixes #5", "author": {"date": "2024-03-01T10:00:00-05:00"}}}
    comment = {"issue_url": "https://api.github.com/repos/owner/calc/issues/5", "body": "early"}
    saved = _write(
        tmp_path / "saved",
        {
            "pulls.json": [_pull(7), _pull(8, body="Fixes #6"), _pull(9, body="nothing"), _pull(10, merged_at=None)],
            "pulls/7/commits.json": [commit],
            "issues/5.json": _issue(5, "Sums are wrong", "add(1, 2) is -1"),
            "issues/comments.jsonl": "\n".join(
                json.dumps({**comment, **each})
                for each in (
                    {"updated_at": "2024-03-01T14:59:59Z"},
                    {"updated_at": "2024-03-01T15:00:00Z", "body": "as late as the commit"},
                    {"updated_at": "2024-03-02T00:00:00Z", "body": "late"},
                )
            ),
            "notes.txt": "x",
        },
    )
    skipped = Counter[str]()
    (found,) = collect_github(saved, clone, TreeStore(tmp_path / "trees"), skipped=skipped)
    made = found.instance
    assert (made.instance_id, made.repo, made.created_at) == ("owner__calc-7", "owner/calc", "2024-04-01T00:00:00Z")
    assert made.problem_statement == "Sums are wrong\nadd(1, 2) is -1\n" and made.hints_text == "early"
    assert made.extra["issue_numbers"] == [5] and made.extra["pull_number"] == 7 and made.extra["source"] == "github"
    assert "return a + b" in made.patch and "other.py" not in made.patch and "test_sum" in made.test_patch
    # The tree is that of the branch into which it was merged
    assert "calc/other.py" in git(clone, "ls-tree", "-r", "--name-only", made.base_commit).decode()
    assert skipped == {"issue_not_saved": 1, "no_issue": 1, "not_merged": 1}
    assert read_saved(saved).unread == ["notes.txt"]


def test_what_is_of_another_repository_is_left_out(clone: Path, tmp_path: Path) -> None:
    api, other = "https://api.github.com/repos/owner/calc", "https://api.github.com/repos/other/thing"
    commit = {"sha": "a" * 40, "commit": {"message": "fixes #6", "author": {"date": "2024-03-01T10:00:00Z"}}}
    comment = {"body": "foreign", "updated_at": "2020-01-01T00:00:00Z"}
    foreign = _pull(7, title="Foreign", base={"sha": "e" * 40, "repo": {"full_name": "other/thing"}})
    saved = _write(
        tmp_path / "saved",
        {
            "a.json": [_pull(7, body="Fixes #5"), _issue(5, "Own", "own") | {"url": f"{api}/issues/5"}],
            "b.json": [foreign, _issue(5, "Foreign", "x") | {"repository_url": other}],
            "c.json": [comment | {"issue_url": f"{other}/issues/5"}],
            "d/pulls/7/commits.json": [commit | {"url": f"{other}/commits/a"}],
            "e.html": _ISSUE_PAGE.replace("owner/calc", "other/thing"),
        },
    )
    for name in (None, "owner/calc"):
        read = read_saved(saved, name)
        assert (read.pulls[7].title, read.pulls[7].resolved_issues()) == ("T", [5])
        assert (read.issues[5].title, read.issues[5].body, read.issues[5].comments) == ("Own", "own", [])
    assert read_saved(saved, "other/thing").issues[5].title == "Foreign"
    with pytest.raises(UserError, match="'last week' is no date"):
        list(collect_github(saved, clone, TreeStore(tmp_path / "t"), config=CollectConfig(since="last week")))


_PULL_PAGE = """<html><head><title>Add numbers by someone · Pull Request #7 · owner/calc · GitHub</title></head><body>
<span title="Status: Merged" class="State State--merged d-flex"><svg><title>Pull</title></svg> Merged</span>
<div class="timeline"><relative-time datetime="2024-04-01T00:00:00Z">Apr 1</relative-time>
<td class="d-block comment-body markdown-body"><p dir="auto">Sums <strong>again</strong>, see
<a href="/owner/calc/issues/3">#3</a>.</p><pre>x
  y</pre></td></div>
<form aria-label="Link issues"><a href="/owner/calc/issues/5">Sums are wrong</a><a href="/owner/x/issues/9">x</a></form>
</body></html>"""
_ISSUE_PAGE = """<html><head><title>Sums are wrong · Issue #5 · owner/calc · GitHub</title></head><body>
<div data-testid="issue-body"><div data-testid="markdown-body"><p>add(1, 2) is &lt;3</p></div></div>
<relative-time datetime="2024-03-01T00:00:00Z"></relative-time>
<div data-testid="markdown-body"><p>Me too</p></div></body></html>"""


def test_saved_pages_become_candidates_too(clone: Path, tmp_path: Path) -> None:
    saved = _write(tmp_path / "saved", {"7.html": _PULL_PAGE, "5.html": _ISSUE_PAGE, "about.html": "<title>x</title>"})
    read = read_saved(saved)
    assert (read.pulls[7].title, read.pulls[7].merged, read.pulls[7].linked) == ("Add numbers", True, [5])
    assert read.pulls[7].body == "Sums again, see #3.\nx\n  y" and read.unread == ["about.html"]
    assert read.issues[5].body == "add(1, 2) is <3" and read.issues[5].comments == [("2024-03-01T00:00:00Z", "Me too")]
    (found,) = collect_github(saved, clone, TreeStore(tmp_path / "trees"))
    assert found.instance.problem_statement == "Sums are wrong\nadd(1, 2) is <3\n"
    with pytest.raises(UserError, match="holds no pull request"):
        read_saved(_write(tmp_path / "none", {"5.html": _ISSUE_PAGE}))


def test_equal_instants_in_two_zones_are_equal() -> None:
    one, same, utc = map(seconds_of, ("2024-03-01T10:00:00-05:00", "2024-03-01T15:00:00Z", "2024-03-01T15:00:00"))
    assert one == same == utc
    assert seconds_of("never") == float("inf")
