"""Candidates out of saved pull requests and issues of GitHub: answers of its API as JSON, and pages of its site.

Nothing is fetched. A folder may hold, anywhere below it: objects or lists of the API (`.json`, `.jsonl`) of pull
requests, issues, comments and commits, and pages of pull requests and issues (`.html`). Which is which is told by what
they hold. What is of one pull request without saying so, such as its commits, is told by its path:
`pulls/12/commits.json`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from lmlab.errors import UserError
from lmlab.files import read_json, read_jsonl
from lmlab.methods.swebench.instances.load import instant

_KEYWORDS = {"close", "closes", "closed", "fix", "fixes", "fixed", "resolve", "resolves", "resolved"}
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_OF_PULL = re.compile(r"(?:^|[/_.-])(?:pulls?|pr)[/_.-]?(\d+)(?=[/_.-]|$)")
_OF_API = re.compile(r"/repos/([\w.-]+/[\w.-]+)")
_OF_SITE = re.compile(r"github\.com/([\w.-]+/[\w.-]+)")
_TITLE = re.compile(r"^(.*?) (?:by \S+ )?· (Pull Request|Issue) #(\d+) · ([\w.-]+/[\w.-]+)", re.DOTALL)


@dataclass
class Issue:
    """An issue, and what was said of it."""

    number: int
    title: str
    body: str = ""
    comments: list[tuple[str, str]] = field(default_factory=list)
    """When each comment was last changed, and its text."""


@dataclass
class PullRequest:
    """A pull request.

    Attributes:
        merge_commit, head, base: names of commits, as far as they are known.
        messages: of its commits.
        first_commit_at: when the first of them was made.
        linked: issues that its page or record names as solved, besides what its text says.
    """

    number: int
    repo: str
    title: str
    body: str = ""
    merged: bool = False
    created_at: str = ""
    merge_commit: str = ""
    head: str = ""
    base: str = ""
    messages: list[str] = field(default_factory=list)
    first_commit_at: str = ""
    linked: list[int] = field(default_factory=list)

    def resolved_issues(self) -> list[int]:
        """Issues that it says to resolve, in the order of their first mention; those that its page links come last."""
        texts = "\n".join((self.title, self.body, *self.messages))
        return list(dict.fromkeys([*resolved_issues(texts, self.repo), *self.linked]))


def resolved_issues(text: str, repo: str) -> list[int]:
    """Numbers of the issues that a text says to close, fix or resolve, by number or by address."""
    text = _COMMENT.sub("", text)
    address = rf"https://github\.com/{re.escape(repo.removesuffix('.git'))}/issues/"
    found = re.finditer(rf"(\w+)\s+(?:#|{address})(\d+)", text, re.IGNORECASE)
    return list(dict.fromkeys(int(each[2]) for each in found if each[1].lower() in _KEYWORDS))


@dataclass
class Saved:
    """What a folder holds, by number.

    Attributes:
        unread: files that are none of all this.
    """

    pulls: dict[int, PullRequest] = field(default_factory=dict)
    issues: dict[int, Issue] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


@dataclass
class _Read:
    """What was read, of all repositories: by repository, empty where nothing tells it, and number."""

    pulls: dict[tuple[str, int], PullRequest] = field(default_factory=dict)
    issues: dict[tuple[str, int], Issue] = field(default_factory=dict)
    commits: dict[int, list[Mapping[str, Any]]] = field(default_factory=dict)
    comments: list[Mapping[str, Any]] = field(default_factory=list)

    def of(self, repo: str) -> Saved:
        """What is of one repository, or does not say of which."""

        def own(other: str) -> bool:
            return other.casefold() in ("", repo.casefold())

        pulls = {number: each for (_, number), each in sorted(self.pulls.items()) if each.repo == repo}
        found = Saved(pulls)
        for (other, number), issue in self.issues.items():
            if own(other):
                known = found.issues.setdefault(number, issue)
                known.title, known.body = known.title or issue.title, known.body or issue.body
                known.comments = known.comments or issue.comments
        for number, rows in self.commits.items():
            if number in pulls:
                _add_commits(pulls[number], [row for row in rows if own(_repo_of(row))])
        for row in self.comments:
            match = re.search(r"/issues/(\d+)$", str(row.get("issue_url", "")))
            if match and int(match[1]) in found.issues and own(_repo_of(row)):
                at = str(row.get("updated_at") or row.get("created_at") or "")
                found.issues[int(match[1])].comments.append((at, str(row.get("body") or "")))
        return found


def _repo_of(row: Mapping[str, Any]) -> str:
    """The repository of an issue, comment or commit, as its addresses tell it."""
    for key in ("repository_url", "issue_url", "url", "html_url"):
        address = str(row.get(key) or "")
        if (match := _OF_API.search(address) or _OF_SITE.search(address)) is not None:
            return match[1]
    return ""


def read_saved(folder: str | Path, repo: str | None = None) -> Saved:
    """Read a folder of saved answers and pages.

    Arguments:
        repo: OWNER/NAME; what is of another repository is left out. By default that of the first pull request.

    Raises:
        UserError: there is no such folder, a file is damaged, or there is no pull request.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"No such folder: '{folder}'.")
    found, unread = _Read(), list[str]()
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        place = path.relative_to(folder).as_posix()
        if path.suffix == ".html":
            if not _read_page(path.read_text(encoding="utf-8", errors="replace"), found):
                unread.append(place)
            continue
        known = False
        for row in _rows(path):
            known = _read_row(row, place, found) or known
        if not known:
            unread.append(place)
    if not found.pulls:
        raise UserError(f"'{folder}' holds no pull request.", "Save answers of the API (.json) or pages (.html) there.")
    saved = found.of(repo or next(iter(found.pulls.values())).repo)
    saved.unread = unread
    return saved


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.suffix == ".jsonl":
        yield from read_jsonl(path)
    elif path.suffix == ".json":
        found = read_json(path)
        yield from (each for each in (found if isinstance(found, list) else [found]) if isinstance(each, dict))


def _read_row(row: Mapping[str, Any], place: str, found: _Read) -> bool:
    """Take a row of the API for what its keys make it; False for something else."""
    number = row.get("number")
    if isinstance(number, int) and isinstance(row.get("base"), dict):
        pull = _pull(row, number)
        found.pulls[pull.repo, number] = pull
    elif isinstance(number, int) and "title" in row and "pull_request" not in row:
        issue = found.issues.setdefault((_repo_of(row), number), Issue(number, ""))
        issue.title, issue.body = str(row.get("title") or ""), str(row.get("body") or "")
    elif "issue_url" in row and "body" in row:
        found.comments.append(row)
    elif isinstance(row.get("commit"), dict) and "sha" in row and (match := _OF_PULL.search(place)):
        found.commits.setdefault(int(match[1]), []).append(row)
    else:
        return "pull_request" in row
    return True


def _pull(row: Mapping[str, Any], number: int) -> PullRequest:
    base, head = row["base"], row.get("head") or {}
    repo = (base.get("repo") or {}).get("full_name") or ""
    if not repo and (match := re.search(r"github\.com/(?:repos/)?([\w.-]+/[\w.-]+)/pulls?/", str(row.get("url", "")))):
        repo = match[1]
    linked = row.get("resolved_issues") or []
    return PullRequest(
        number,
        repo,
        str(row.get("title") or ""),
        str(row.get("body") or ""),
        bool(row.get("merged_at") or row.get("merged")),
        str(row.get("created_at") or ""),
        str(row.get("merge_commit_sha") or ""),
        str(head.get("sha") or ""),
        str(base.get("sha") or ""),
        linked=[int(each) for each in linked if str(each).isdigit()],
    )


def _add_commits(pull: PullRequest, rows: list[Mapping[str, Any]]) -> None:
    pull.messages += [str(row["commit"].get("message") or "") for row in rows]
    dates = [(row["commit"].get("author") or {}).get("date") or "" for row in rows]
    pull.first_commit_at = min((each for each in dates if each), default="")


def _read_page(text: str, found: _Read) -> bool:
    """Take a page of a pull request or issue; False for another page."""
    page = _Page()
    page.feed(text)
    match = _TITLE.search(" ".join(page.title.split()))
    if match is None:
        return False
    title, kind, number, repo = match[1], match[2], int(match[3]), match[4]
    first, *rest = page.comments or [("", "")]
    if kind == "Issue":
        issue = found.issues.setdefault((repo, number), Issue(number, title))
        issue.title, issue.body = issue.title or title, issue.body or first[1]
        issue.comments += [] if issue.comments else rest
    elif (repo, number) not in found.pulls:  # an answer of the API says more
        merged = bool(re.search(r"\bmerged\b", page.state, re.IGNORECASE))
        own = rf"/{re.escape(repo)}/issues/(\d+)$"
        linked = [int(each[1]) for target in page.linked if (each := re.search(own, target))]
        found.pulls[repo, number] = PullRequest(number, repo, title, first[1], merged, first[0], linked=linked)
    return True


_SILENT = {"script", "style", "svg", "button"}
_BLOCKS = {"p", "div", "li", "br", "pre", "h1", "h2", "h3", "h4", "tr", "ul", "ol", "blockquote"}
_VOID = {"br", "img", "hr", "input", "meta", "link", "area", "col", "source", "wbr"}


class _Page(HTMLParser):
    """What of a page is title, state, comments with their times, and links of the part about development."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title, self.state = "", ""
        self.comments: list[tuple[str, str]] = []
        self.linked: list[str] = []
        self._stack: list[tuple[str, str]] = []  # open elements, and what each of them begins
        self._text: list[str] = []
        self._time = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element begins."""
        told = {name: value or "" for name, value in attrs}
        classes = set(told.get("class", "").split())
        inside = {kind for _, kind in self._stack}
        kind = ""
        if tag == "title" and not self._stack_has("svg"):
            kind = "title"
        elif classes & {"State"} or told.get("data-status") or "state" in told.get("data-testid", ""):
            kind = "state"
            self.state += f" {told.get('title', '')} {told.get('data-status', '')} "
        elif (
            "comment-body" in classes or told.get("data-testid") == "markdown-body" or "issue-body" in classes
        ) and "comment" not in inside:
            kind, self._text = "comment", []
        elif (
            "development" in (told.get("aria-label", "") + told.get("data-testid", "")).lower()
            or told.get("aria-label", "").lower() == "link issues"
        ):
            kind = "development"
        if tag in ("relative-time", "time") and told.get("datetime") and "comment" not in inside:
            self._time = told["datetime"]
        if tag == "a" and "development" in inside:
            self.linked.append(told.get("href", ""))
        if "comment" in inside and tag in _BLOCKS:
            self._text.append("\n")
        if tag not in _VOID:
            self._stack.append((tag, kind))

    def handle_endtag(self, tag: str) -> None:
        """An element ends, and with it all that were left open inside."""
        if not self._stack_has(tag):
            return
        while self._stack:
            open_tag, kind = self._stack.pop()
            if kind == "comment":
                text = re.sub(r"\n{3,}", "\n\n", "".join(self._text)).strip()
                self.comments.append((self._time, text))
            if open_tag == tag:
                return

    def _stack_has(self, tag: str) -> bool:
        return any(open_tag == tag for open_tag, _ in self._stack)

    def handle_data(self, data: str) -> None:
        """Text."""
        if any(tag in _SILENT for tag, _ in self._stack):
            return
        kinds = {kind for _, kind in self._stack}
        if "title" in kinds:
            self.title += data
        if "state" in kinds:
            self.state += data
        if "comment" in kinds:
            self._text.append(data if self._stack_has("pre") else re.sub(r"\s+", " ", data))


def statement_of_issues(pull: PullRequest, issues: Mapping[int, Issue]) -> tuple[str, str]:
    """The problem in the words of the issues that a pull request resolves, and hints: what was said of them before the
    pull request's first commit.
    """
    known = [issues[number] for number in pull.resolved_issues() if number in issues]
    statement = "".join(f"{each.title}\n{each.body}\n" for each in known)
    hints = [
        text
        for each in known
        for at, text in each.comments
        if at and pull.first_commit_at and seconds_of(at) < seconds_of(pull.first_commit_at)
    ]
    return statement, "\n".join(hints)


def seconds_of(text: str) -> float:
    """Seconds of a time with its zone, so that equal instants in two zones are equal; infinity for no time."""
    found = instant(text)
    return math.inf if found is None else found.timestamp()
