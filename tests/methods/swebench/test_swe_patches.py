"""Patches are read without loss, split, taken out of answers, repaired, and judged."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lmlab.errors import UserError
from lmlab.methods.swebench.patches.answers import diff_of, patch_of_answer
from lmlab.methods.swebench.patches.diff import read_diff, write_diff
from lmlab.methods.swebench.patches.extract import extract_patch
from lmlab.methods.swebench.patches.repair import repair_patch
from lmlab.methods.swebench.patches.safety import judge_patch
from lmlab.methods.swebench.patches.split import directives, is_test, runnable_tests, split_patch

SQL = """diff --git a/q.sql b/q.sql
--- a/q.sql
+++ b/q.sql
@@ -1,3 +1,3 @@
 a
--- a comment
+++ a comment
 b
diff --git a/tests/x.bin b/tests/x.bin
new file mode 100644
index 0000000..1111111
Binary files /dev/null and b/tests/x.bin differ
diff --git "a/d\\303\\251.py" "b/d\\303\\251.py"
--- "a/d\\303\\251.py"
+++ "b/d\\303\\251.py"
@@ -1 +1 @@ def f():
-x\r
+y\r
\\ No newline at end of file
"""


def _git(folder: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=folder, input=stdin, capture_output=True, text=True, check=False)


def test_a_patch_is_read_and_written_without_the_loss_of_a_byte() -> None:
    files = read_diff(SQL)
    assert write_diff(files) == SQL
    assert [each.path for each in files] == ["q.sql", "tests/x.bin", "dé.py"]
    assert files[0].hunks[0].removed == ["-- a comment\n"] and files[0].hunks[0].added == ["++ a comment\n"]
    assert files[1].binary and files[1].old is None
    assert files[2].hunks[0].added == ["y\r\n"]


def test_files_are_tests_by_their_words_or_as_the_reference_has_it() -> None:
    paths = [
        "latest.py",
        "contest/x.py",
        "tests/x.py",
        "src/test_a.py",
        "a/testing/b.py",
        "conftest.py",
        "a/conftest.py",
    ]
    assert [is_test(path) for path in paths] == [False, False, True, True, True, True, True]
    assert all(is_test(path, "reference") for path in paths)
    split = split_patch(SQL)
    assert [each.path for each in read_diff(split.patch)] == ["q.sql", "dé.py"]
    assert split.test_patch.startswith("diff --git a/tests/x.bin") and split.binary == ("tests/x.bin",)


def test_directives_are_the_files_that_the_runner_takes() -> None:
    patch = "".join(
        f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-a\n+b\n"
        for path in ("tests/queries/test_q.py", "tests/data.json", "tests/a.csv")
    )
    assert directives(patch) == ["tests/queries/test_q.py"]
    assert directives(patch, "django/django") == ["queries.test_q"]
    assert runnable_tests(["tests/conftest.py", "a/test_b.py", "b_test.py", "test.py", "x.py", "test.txt"]) == [
        "a/test_b.py",
        "b_test.py",
        "test.py",
    ]


@pytest.mark.parametrize(
    ("answer", "patch"),
    [
        ("<patch>\na\n</patch>", "\na\n"),
        ("<x>no</x> and\n```diff\na\n```", "a\n"),
        ("<x>yes</x>", "yes"),
        ("```python\nyes\n```", "yes\n"),
        ("bare</s>rest", "bare"),
        (None, None),
    ],
)
def test_a_patch_is_found_in_an_answer_in_the_order_of_the_reference(answer: str | None, patch: str | None) -> None:
    assert extract_patch(answer) == patch


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    _git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("".join(f"line {number}\n" for number in range(1, 41)))
    _git(tmp_path, "add", ".")
    return tmp_path


def _read(tree: Path):  # type: ignore[no-untyped-def]
    return lambda path: (tree / path).read_text() if (tree / path).is_file() else None


WRONG = """

diff --git a/a.py b/a.py
--- a/a.py
+++ b/a.py
@@ -3,9 +3,1 @@
 line 20
-line 21
+line twenty-one
+more
 line 22
@@ -30,2 +30,2 @@
 line 30
-line 31
+line 31!"""


def test_repairs_make_a_wrong_patch_apply_and_are_recorded(tree: Path) -> None:
    assert _git(tree, "apply", "--check", "-", stdin=WRONG).returncode != 0
    assert repair_patch(WRONG, "raw") == (WRONG, [])
    patch, steps = repair_patch(WRONG, "anchor", _read(tree))
    assert steps == ["leading_newlines", "final_newline", "anchor", "recount"]
    done = _git(tree, "apply", "-", stdin=patch)
    assert done.returncode == 0, done.stderr
    lines = (tree / "a.py").read_text().splitlines()
    assert lines[19:23] == ["line 20", "line twenty-one", "more", "line 22"] and lines[31] == "line 31!"


def test_counts_are_mended_alone_when_places_are_right(tree: Path) -> None:
    wrong = "--- a/a.py\n+++ b/a.py\n@@ -20,1 +20,1 @@\n line 20\n-line 21\n+x\n line 22\n\n\n"
    patch, steps = repair_patch(wrong, "recount")
    assert steps == ["recount"]
    assert _git(tree, "apply", "-", stdin=patch).returncode == 0
    assert repair_patch(patch, "recount") == (patch, [])


def test_a_hunk_whose_lines_stand_twice_stays_where_it_is(tree: Path) -> None:
    (tree / "a.py").write_text("x\ny\nx\ny\n")
    patch = "--- a/a.py\n+++ b/a.py\n@@ -9,2 +9,2 @@\n x\n-y\n+z\n"
    assert "@@ -9,2" in repair_patch(patch, "anchor", _read(tree))[0]


@pytest.mark.parametrize(
    ("fmt", "answer"),
    [
        ("search_replace", "a.py\n<<<<<<< SEARCH\nline   2\n=======\nline two\n>>>>>>> REPLACE\n"),
        ("json_edits", '```json\n[{"path": "a.py", "old": "line 2\\n", "new": "line two\\n"}]\n```'),
        ("diff", "<patch>\n--- a/a.py\n+++ b/a.py\n@@ -1,3 +1,3 @@\n line 1\n-line 2\n+line two\n line 3\n</patch>"),
    ],
)
def test_every_form_of_answer_becomes_a_patch_that_git_applies(tree: Path, fmt: str, answer: str) -> None:
    patch = patch_of_answer(answer, fmt, _read(tree))  # type: ignore[arg-type]
    assert patch is not None
    assert _git(tree, "apply", "-", stdin=patch.lstrip("\n")).returncode == 0
    assert (tree / "a.py").read_text().splitlines()[:3] == ["line 1", "line two", "line 3"]


def test_what_stands_there_twice_is_not_replaced(tree: Path) -> None:
    (tree / "a.py").write_text("x\nx\n")
    answer = "a.py\n<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE\n"
    with pytest.raises(UserError, match="2 times"):
        patch_of_answer(answer, "search_replace", _read(tree))


def test_patches_of_contents_apply_with_new_removed_and_unended_files(tree: Path) -> None:
    (tree / "gone.py").write_text("x\n")
    after = {"new.py": "one\ntwo", "gone.py": None, "a.py": "last"}
    patch = diff_of(_read(tree), after)
    assert _git(tree, "apply", "-", stdin=patch).returncode == 0
    assert (tree / "new.py").read_text() == "one\ntwo" and not (tree / "gone.py").exists()
    assert (tree / "a.py").read_text() == "last"


def _of(path: str, mode: str = "100644", content: str = "x") -> str:
    return (
        f"diff --git a/{path} b/{path}\nnew file mode {mode}\n--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+{content}\n"
        "\\ No newline at end of file\n"
    )


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        (_of("../x"), "leaves the repository"),
        (_of("a/../../x"), "leaves the repository"),
        (_of("/etc/passwd"), "absolute"),
        (_of(".git/hooks/pre-commit"), "inside .git"),
        (_of("a/.GIT/config"), "inside .git"),
        (_of(".gitmodules"), "a submodule"),
        (_of("lib", "160000", "Subproject commit " + "0" * 40), "a submodule"),
        (_of("link", "120000", "/etc/passwd"), "a symbolic link"),
        (_of("a/link", "120000", "../../x"), "a symbolic link"),
    ],
)
def test_patches_that_reach_out_of_the_tree_are_refused(patch: str, reason: str) -> None:
    assert reason in "".join(judge_patch(patch).refused.values())


def test_links_inside_the_tree_are_admitted() -> None:
    assert judge_patch(_of("a/link", "120000", "../b")).refused == {}


def test_files_that_change_how_tests_are_judged_are_noted() -> None:
    paths = ["conftest.py", "a/conftest.py", "pytest.ini", "sitecustomize.py", "x.pth", "pytest.py", "src/_pytest/a.py"]
    assert all(judge_patch(_of(path)).touches_test_infra for path in paths)
    assert judge_patch(_of("setup.cfg", content="[tool:pytest]")).touches_test_infra
    assert not judge_patch(_of("setup.cfg", content="[metadata]")).touches_test_infra
    assert not judge_patch(_of("src/a.py")).touches_test_infra
