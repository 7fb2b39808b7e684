"""Candidates out of a git repository, alone or with saved pull requests, or out of archives of consecutive releases."""

from __future__ import annotations

import itertools
import math
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lmlab.distributed import scratch_folder
from lmlab.errors import UserError
from lmlab.methods.swebench.building.candidate import Candidate, statement_of, version_in
from lmlab.methods.swebench.building.github import PullRequest, read_saved, seconds_of, statement_of_issues
from lmlab.methods.swebench.building.settings import CollectConfig
from lmlab.methods.swebench.harness.workspaces.git import commit_tree, git, run_git
from lmlab.methods.swebench.harness.workspaces.trees import TreeStore, is_commit, tree_files, unpack
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.patches.diff import FileDiff, read_diff
from lmlab.methods.swebench.patches.split import is_test, runnable_tests, split_patch

_DIFF = ("diff", "--no-renames", "--full-index", "--no-color", "--no-ext-diff", "--no-textconv")
_VERSION_FILES = re.compile(
    r"(?:^|/)(?:__init__|__about__|_?_?version_?_?|setup)\.py$|^(?:pyproject\.toml|setup\.cfg)$"
)
_CHANGES = re.compile(r"(?:^|/)(?:change|news|history|release)[\w-]*(?:\.\w+)?$", re.IGNORECASE)


@dataclass(frozen=True)
class _Commit:
    name: str
    parent: str
    date: str


def collect_git(
    repository: str | Path, trees: TreeStore, name: str | None = None, config: CollectConfig | None = None
) -> Iterator[Candidate]:
    """Changes of a repository that edit source and tests, the newest first.

    Arguments:
        repository: a working tree, a bare repository, or a bundle.
        trees: receives the tree before each change.
        name: OWNER/NAME, by default that of the remote `origin` or of the folder.

    Raises:
        UserError: it is no repository.
    """
    config = config or CollectConfig()
    with _opened(Path(repository)) as repository:
        name = name or _name_of(repository)
        found = 0
        for commit in _commits(repository, config.since):
            candidate = _candidate(repository, commit, trees, name, config)
            if candidate is not None:
                yield candidate
                found += 1
            if found == config.limit:
                return


@contextmanager
def _opened(repository: Path) -> Iterator[Path]:
    """A repository's folder, also of a bundle."""
    with scratch_folder("collect") as scratch:
        if repository.is_file():
            allowed = ("-c", "protocol.file.allow=always")
            git(scratch, *allowed, "clone", "-q", "--bare", str(repository.resolve()), "r")
            repository = scratch / "r"
        elif not repository.is_dir() or run_git(repository, ["rev-parse", "--git-dir"]).returncode != 0:
            raise UserError(f"'{repository}' is no git repository.")
        yield repository


def collect_github(
    saved: str | Path,
    repository: str | Path,
    trees: TreeStore,
    name: str | None = None,
    config: CollectConfig | None = None,
    skipped: Counter[str] | None = None,
) -> Iterator[Candidate]:
    """Pull requests out of a folder of saved answers and pages of GitHub, each with the issues that it resolves.

    Arguments:
        saved: the folder (`read_saved`).
        repository: a clone, where the change itself and the tree before it are.
        name: OWNER/NAME, by default that of the first pull request.
        skipped: receives, reason by reason, how many are none.

    Raises:
        UserError: the folder or the clone cannot be read, or `since` is no date.
    """
    config = config or CollectConfig()
    if config.since is not None and seconds_of(config.since) == math.inf:
        raise UserError(f"'{config.since}' is no date.", "Write it as 2024-01-01.")
    skipped = Counter() if skipped is None else skipped
    found = read_saved(saved, name)
    count = 0
    with _opened(Path(repository)) as repository:
        merges = _merges(repository)
        for number, pull in sorted(found.pulls.items(), reverse=True):
            if count == config.limit:
                return
            step = _step(repository, pull, merges)
            issues = pull.resolved_issues()
            if not pull.merged and number not in merges:
                skipped["not_merged"] += 1
            elif not issues:
                skipped["no_issue"] += 1
            elif config.since is not None and seconds_of(pull.created_at) < seconds_of(config.since):
                skipped["too_old"] += 1
            elif step is None:
                skipped["not_in_repository"] += 1
            elif not (statement := statement_of_issues(pull, found.issues))[0].strip():
                skipped["issue_not_saved"] += 1
            elif (made := _candidate(repository, step, trees, pull.repo, config, f"{number}")) is None:
                skipped["no_source_and_tests"] += 1
            else:
                extra = {key: value for key, value in made.instance.extra.items() if key != "step"}
                extra |= {"source": "github", "problem_source": "issues", "fix_commit": step.name}
                extra |= {"pull_number": number, "issue_numbers": issues}
                yield Candidate(
                    replace(
                        made.instance,
                        base_commit=step.parent,
                        problem_statement=statement[0],
                        hints_text=statement[1],
                        created_at=pull.created_at,
                        extra=extra,
                    )
                )
                count += 1


def _merges(repository: Path) -> dict[int, _Commit]:
    """The commit by which each pull request came in, as its message names it."""
    found: dict[int, _Commit] = {}
    listed = git(repository, "log", "--first-parent", "--format=%H %P%x09%aI%x09%s").decode("utf-8", "replace")
    for line in listed.split("\n")[:-1]:  # a subject may hold what else ends a line
        names, date, subject = line.split("\t", 2)
        parts = names.split()
        match = re.match(r"Merge pull request #(\d+)\b", subject) or re.search(r"\(#(\d+)\)$", subject)
        if match and len(parts) >= 2:
            found.setdefault(int(match[1]), _Commit(parts[0], parts[1], date))
    return found


def _step(repository: Path, pull: PullRequest, merges: Mapping[int, _Commit]) -> _Commit | None:
    """The change of a pull request: what its merge brought in, or else what lies between its base and its head."""
    if pull.merge_commit and is_commit(repository, pull.merge_commit):
        parent = run_git(repository, ["rev-parse", "--verify", "-q", f"{pull.merge_commit}^1"])
        if parent.returncode == 0:
            return _Commit(pull.merge_commit, parent.stdout.decode().strip(), pull.created_at)
    if pull.number in merges:
        return merges[pull.number]
    if all(each and is_commit(repository, each) for each in (pull.base, pull.head)):
        base = run_git(repository, ["merge-base", pull.base, pull.head])
        if base.returncode == 0:
            return _Commit(pull.head, base.stdout.decode().strip(), pull.created_at)
    return None


def collect_archives(
    archives: Sequence[str | Path], trees: TreeStore, name: str, config: CollectConfig | None = None
) -> Iterator[Candidate]:
    """The step from each source archive (sdist) to the next one that edits source and tests.

    Arguments:
        archives: in the order of their releases.

    Raises:
        UserError: there are fewer than two, or one cannot be unpacked.
    """
    places = [Path(each) for each in archives]
    if len(places) < 2:
        raise UserError("A step needs two archives: name them in the order of their releases.")
    config = config or CollectConfig(max_source_files=None, max_source_lines=None)
    with scratch_folder("archives") as scratch:
        repository = scratch / "repository"
        repository.mkdir()
        commit_tree(repository)
        commits = [_add_release(repository, archive, scratch) for archive in places]
        steps = itertools.pairwise(zip(places, commits, strict=True))
        for (one, parent), (two, commit) in steps:
            label = _release(two)
            step = _Commit(commit, parent, "")
            candidate = _candidate(repository, step, trees, name, config, label, f"{_release(one)} -> {label}")
            if candidate is not None:
                yield candidate


def _release(archive: Path) -> str:
    """The version in an archive's name."""
    stem = re.sub(r"\.(?:tar\.\w+|tgz|zip)$", "", archive.name)
    return stem.rpartition("-")[2] or stem


def _add_release(repository: Path, archive: Path, scratch: Path) -> str:
    """Commit what an archive holds on top of the one before; the commit's name."""
    for each in repository.iterdir():
        if each.name != ".git":
            _remove(each)
    inside = scratch / "unpacked"
    inside.mkdir(exist_ok=True)
    _remove_all(inside)
    unpack(archive.read_bytes(), inside)
    tops = list(inside.iterdir())
    top = tops[0] if len(tops) == 1 and tops[0].is_dir() else inside
    for each in top.iterdir():
        # What the build tool adds is no source
        if each.name != "PKG-INFO" and not each.name.endswith(".egg-info"):
            each.rename(repository / each.name)
    for each in list(repository.rglob("*.egg-info")):
        _remove(each)
    # Files of two releases may have one size and one time, by which git would take them for unchanged
    (repository / ".git" / "index").unlink(missing_ok=True)
    git(repository, "add", "--all", "--force")
    git(repository, "commit", "-q", "--allow-empty", "-m", archive.name)
    return git(repository, "rev-parse", "HEAD").decode().strip()


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _remove_all(folder: Path) -> None:
    for each in folder.iterdir():
        _remove(each)


def _name_of(repository: Path) -> str:
    url = git(repository, "config", "--get", "remote.origin.url", check=False).decode().strip()
    match = re.search(r"[/:]([\w.-]+)/([\w.-]+?)(?:\.git)?/?$", url)
    return f"{match[1]}/{match[2]}" if match else f"local/{repository.resolve().name.removesuffix('.git')}"


def _commits(repository: Path, since: str | None) -> Iterator[_Commit]:
    """Commits with exactly one parent."""
    arguments = ["log", "--no-merges", "--format=%H %P%x09%aI"]
    if since is not None:
        arguments.append(f"--since={since}")
    for line in git(repository, *arguments).decode().splitlines():
        names, _, date = line.partition("\t")
        parts = names.split()
        if len(parts) == 2:
            yield _Commit(parts[0], parts[1], date)


def _candidate(
    repository: Path,
    commit: _Commit,
    trees: TreeStore,
    name: str,
    config: CollectConfig,
    label: str | None = None,
    step: str = "",
) -> Candidate | None:
    listed = git(repository, "diff", "--no-renames", "--numstat", "-z", commit.parent, commit.name).decode(
        "utf-8", "surrogateescape"
    )
    changes = [entry.split("\t", 2) for entry in listed.split("\0") if entry]
    if any(added == "-" for added, _, _ in changes):
        return None  # a text patch cannot carry a binary file
    python = [each for each in changes if each[2].endswith((".py", ".pyi"))]
    source = [each for each in python if not is_test(each[2], config.split) and each[2].endswith(".py")]
    tests = [each for each in python if is_test(each[2], config.split)]
    lines = sum(int(added) + int(removed) for added, removed, _ in source)
    if not source or not runnable_tests(path for _, _, path in tests):
        return None
    if config.max_source_files is not None and len(source) > config.max_source_files:
        return None
    if config.max_source_lines is not None and lines > config.max_source_lines:
        return None
    text = git(repository, *_DIFF, commit.parent, commit.name).decode("utf-8", "surrogateescape")
    try:
        text.encode()
    except UnicodeEncodeError:
        return None  # files of another encoding, which JSON cannot carry
    split = split_patch(text, config.split)
    files = runnable_tests(file.new for file in read_diff(split.test_patch) if file.new is not None)
    if not files:
        return None  # tests are only removed
    with scratch_folder("tree") as scratch:
        try:
            digest = trees.add_commit(repository, commit.parent, scratch)
        except UserError:
            return None  # submodules
        version = version_in(_version_texts(scratch))
    statement, said_by = _statement(repository, commit, split.patch, label)
    instance = Instance(
        instance_id=f"{name.replace('/', '__')}-{label or commit.name[:10]}",
        repo=name,
        base_commit=commit.parent if label is None else "",
        patch=split.patch,
        test_patch=split.test_patch,
        problem_statement=statement,
        created_at=commit.date,
        version=version,
        log_parser="parse_log_pytest",
        extra={
            "schema_version": 1,
            "source": "git" if label is None else "archives",
            **({"fix_commit": commit.name} if label is None else {"step": step}),
            "base_tree": digest,
            "test_files": files,
            "problem_source": said_by,
        },
    )
    return Candidate(instance)


def _version_texts(tree: Path) -> dict[str, str]:
    # deeper files are those of parts and of vendored packages
    names = [path for path in tree_files(tree) if _VERSION_FILES.search(path) and path.count("/") < 4]
    return {path: (tree / path).read_text("utf-8", "replace") for path in names if (tree / path).is_file()}


def _statement(repository: Path, commit: _Commit, patch: str, label: str | None) -> tuple[str, str]:
    """The problem in words, and where they come from: the message of the commit, or what the change adds to the list
    of changes.
    """
    if label is None:
        message = git(repository, "log", "-1", "--format=%B", commit.name).decode("utf-8", "replace")
        return statement_of(message), "commit"
    added = [line for file in read_diff(patch) if _CHANGES.search(file.path) for line in _added(file)]
    return (statement_of("".join(added)), "changes") if added else (f"Behavior changed in version {label}.\n", "none")


def _added(file: FileDiff) -> list[str]:
    return [line for hunk in file.hunks for line in hunk.added]
