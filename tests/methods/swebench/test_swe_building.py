"""Benchmarks out of histories and archives."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from swe_parts import BASE, FIXED, write_tree

from lmlab.errors import UserError
from lmlab.methods.swebench.building.candidate import Candidate, Rejection, statement_of, version_in
from lmlab.methods.swebench.building.collect import collect_archives, collect_git
from lmlab.methods.swebench.building.declared import declared_requirements, required_environment
from lmlab.methods.swebench.building.leaks import Part, holds, telling_lines
from lmlab.methods.swebench.building.many import validate_all
from lmlab.methods.swebench.building.settings import CollectConfig, ValidateConfig
from lmlab.methods.swebench.building.validate import validate
from lmlab.methods.swebench.config import RequiredConfig
from lmlab.methods.swebench.harness.controls.control import control_source
from lmlab.methods.swebench.harness.environment import Environments, EnvironmentSpec
from lmlab.methods.swebench.harness.judge import Judge
from lmlab.methods.swebench.harness.workspaces.trees import TreeStore
from lmlab.methods.swebench.harness.workspaces.workspace import Workspaces
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.instances.lite import lite_criteria
from lmlab.methods.swebench.patches.answers import diff_of

# Asked of the metadata: looking for the module (`find_spec("pip")`) makes setuptools switch its distutils off for the
# whole process, and torch.compile then fails in every later test of this worker.
_NEEDS_PIP = pytest.mark.skipif(
    not any(importlib.metadata.distributions(name="pip")), reason="this environment has no pip"
)
_ONCE = ValidateConfig(repeats=1, before_runs=1, hash_seeds=())


def test_a_fix_becomes_an_instance_with_its_tests(built: Instance) -> None:
    tests = "tests/test_calc.py::"
    assert built.fail_to_pass == tuple(
        sorted(tests + name for name in ("TestParse::test_sum", "test_add[1]", "test_add[2]", "test_empty"))
    )
    assert built.pass_to_pass == tuple(
        sorted(tests + name for name in ("TestParse::test_mul_inherited", "TestParse::test_number", "test_mul"))
    )
    assert built.problem_statement == "Add numbers, fixes\n\nSee and\n"
    assert built.extra["control"] == {"tests": [], "copies": []} and built.extra["leaks"] == []
    assert built.extra["test_files"] == ["tests/test_calc.py"] and built.extra["source"] == "git"
    assert "tests/" not in built.patch and "calc/" not in built.test_patch


def test_only_changes_of_source_and_tests_are_candidates(repository: Path, tmp_path: Path) -> None:
    trees = TreeStore(tmp_path)
    found = list(collect_git(repository, trees))
    assert len(found) == 2 and {each.instance.repo for each in found} == {"local/calc"}
    assert len(list(collect_git(repository, trees, config=CollectConfig(limit=1)))) == 1
    small = collect_git(repository, trees, config=CollectConfig(max_source_lines=3))
    assert [each.instance.patch.count("x = 3") for each in small] == [1]
    subprocess.run(["git", "bundle", "create", "-q", str(tmp_path / "b"), "--all"], cwd=repository, check=True)
    bundled = list(collect_git(tmp_path / "b", trees, "owner/calc"))
    assert [each.instance.extra["base_tree"] for each in bundled] == [
        each.instance.extra["base_tree"] for each in found
    ]
    with pytest.raises(UserError, match="is no git repository"):
        list(collect_git(tmp_path, trees))


def _archive(folder: Path, version: str, files: dict[str, str]) -> Path:
    top = folder / f"calc-{version}"
    write_tree(
        top,
        {
            **files,
            "PKG-INFO": version,
            "calc.egg-info/SOURCES.txt": version,
            "CHANGES.md": f"# {version}\n- Numbers are added ({version}, #3)\n",
        },
    )
    path = folder / f"calc-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(top, top.name)
    return path


def test_releases_become_instances_and_what_build_tools_add_is_no_source(
    judge: Judge, environment: EnvironmentSpec, tmp_path: Path
) -> None:
    archives = [_archive(tmp_path, "1.0", BASE), _archive(tmp_path, "1.1", {**BASE, **FIXED})]
    (candidate,) = collect_archives(archives, judge.workspaces.trees, "owner/calc")
    assert "PKG-INFO" not in candidate.instance.patch and "egg-info" not in candidate.instance.patch
    assert (
        "Numbers are added" in candidate.instance.problem_statement and "#3" not in candidate.instance.problem_statement
    )
    assert candidate.instance.instance_id == "owner__calc-1.1" and candidate.instance.extra["step"] == "1.0 -> 1.1"
    found = validate(candidate, judge, environment, _ONCE)
    assert isinstance(found, Instance) and len(found.fail_to_pass) == 4
    with pytest.raises(UserError, match="two archives"):
        list(collect_archives(archives[:1], judge.workspaces.trees, "owner/calc"))


def _changed(built: Instance, tests: str, source: str | None = None) -> Candidate:
    files = {"tests/test_calc.py": tests}
    patch = diff_of(BASE.get, {"calc/__init__.py": source}) if source else built.patch
    return Candidate(replace(built, test_patch=diff_of(BASE.get, files), patch=patch))


_FLAKY = """import calc


def test_flaky():
    assert calc.add(1, 1) == 2 and hash("a") % 2 == FIRST


def test_ok():
    assert calc.add(1, 1) == 2
"""


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ("def test_nothing():\n    pass\n", "no_f2p"),
        ("x = 1\n", "no_tests_collected"),
        ("import calc\ndef test_x():\n    assert calc.add(1, 1) == 2\n    import time; time.sleep(99)\n", "timeout"),
        ("import no_such_module\n", "no_tests_collected"),
    ],
)
def test_candidates_are_rejected_with_a_reason(tests: str, reason: str, judge: Judge, built: Instance) -> None:
    quick = replace(judge, limits=judge.limits.model_copy(update={"timeout_s": 4.0}))
    found = validate(_changed(built, tests), quick, None, _ONCE)
    assert isinstance(found, Rejection) and found.reason == reason, found


def test_patches_that_do_not_apply_are_rejected(judge: Judge, built: Instance) -> None:
    wrong = built.patch.replace("return a - b", "return a / b")
    found = validate(Candidate(replace(built, patch=wrong)), judge, None, _ONCE)
    assert isinstance(found, Rejection) and found.reason == "patch_conflict"
    wrong = built.test_patch.replace("test_number", "test_word")
    found = validate(Candidate(replace(built, test_patch=wrong)), judge, None, _ONCE)
    assert isinstance(found, Rejection) and found.reason == "test_patch_conflict"


def test_tests_whose_outcome_changes_with_the_hash_seed_are_left_out(judge: Judge, built: Instance) -> None:
    parity = "import sys; sys.stdout.write(str(hash('a') % 2))"
    seeds = {
        seed: subprocess.run(
            [sys.executable, "-c", parity], env={"PYTHONHASHSEED": str(seed)}, capture_output=True, check=True
        ).stdout
        for seed in range(10)
    }
    other = next(seed for seed in seeds if seeds[seed] != seeds[0])
    tests = _FLAKY.replace("FIRST", seeds[0].decode())
    found = validate(_changed(built, tests), judge, None, ValidateConfig(repeats=1, before_runs=1, hash_seeds=(other,)))
    assert isinstance(found, Instance), found
    assert found.fail_to_pass == ("tests/test_calc.py::test_ok",)
    assert found.extra["flaky"] == ["tests/test_calc.py::test_flaky"]


def test_a_test_that_expects_any_exception_is_known_to_tell_nothing(judge: Judge, built: Instance) -> None:
    tests = "import calc, pytest\ndef test_ok():\n    assert calc.add(1, 1) == 2\n"
    tests += "@pytest.mark.xfail\ndef test_known():\n    assert calc.mul(0, 0) == 1\n"
    found = validate(_changed(built, tests), judge, None, _ONCE)
    assert isinstance(found, Instance)
    assert found.extra["control"]["tests"] == ["tests/test_calc.py::test_known"]
    assert judge.judge(found, found.patch).resolved


def test_statements_give_no_numbers_names_or_addresses_away() -> None:
    text = "Fix add (#12, GH-3)\n\nSee owner/repo#4 and https://x.y/z, commit 0123abcd9.\n```\nx = 1\n```\n"
    text += "Signed-off-by: A <a@b>\n"
    found = statement_of(text)
    assert found.startswith("Fix add\n") and not any(
        part in found for part in ("12", "GH", "http", "0123abcd9", "x = 1", "Signed")
    )


def test_versions_are_read_as_major_and_minor() -> None:
    assert version_in({"a/__init__.py": '__version__ = "1.2.3"'}) == "1.2"
    assert version_in({"a/__init__.py": "VERSION = (4, 1, 0)"}) == "4.1"
    assert version_in({"pyproject.toml": '[project]\nversion = "0.9"\n'}) == "0.9"
    assert version_in({}) == ""


def test_the_criteria_of_lite(lite: dict[str, Instance]) -> None:
    short = Instance(instance_id="a", repo="o/r", problem_statement="See https://x.y/z.png and #3.", patch="")
    assert len(lite_criteria(short)) == 4
    words = [
        each
        for each in lite.values()
        if "the issue has fewer than 40 words" in lite_criteria(each) and each.extra["split"] == "test"
    ]
    assert words == []


@_NEEDS_PIP
def test_environments_are_built_once_by_their_content(tmp_path: Path) -> None:
    store = Environments(tmp_path)
    spec = EnvironmentSpec(requirements=())
    one = store.ensure(spec)
    changed = (one.python.parent.parent / "ready.json").stat().st_mtime_ns
    assert store.ensure(EnvironmentSpec(requirements=())) == one
    assert (one.python.parent.parent / "ready.json").stat().st_mtime_ns == changed
    assert EnvironmentSpec(requirements=("x",)).id != spec.id
    assert [each["id"] for each in store.list()] == [spec.id[:32]] and store.prune(set()) == 1 and store.list() == []


def test_a_benchmark_is_built_and_evaluated_from_the_command_line(
    lmlab: Callable[..., Any], repository: Path, environment: EnvironmentSpec, tmp_path: Path, judge: Judge
) -> None:
    out = tmp_path / "benchmark"
    done = lmlab("swe", "collect", repository, "--name", "owner/calc", "--out", out)
    assert done.code == 0 and "2 candidates" in done.out, done.err
    rows = [json.loads(line) for line in (out / "candidates.jsonl").read_text().splitlines()]
    assert all(row["instance_id"].startswith("owner__calc-") for row in rows)
    assert lmlab("swe", "validate", tmp_path / "none.jsonl").code == 2


@pytest.mark.slow
@_NEEDS_PIP
def test_the_measured_instances_are_built_again_from_their_archives(shared: Path, tmp_path: Path, judge: Judge) -> None:
    """Rebuilds real instances where their releases can be downloaded; only the smallest, as each costs seconds."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(tmp_path)]
    for version in ("4.8.1", "4.8.2"):
        done = subprocess.run(
            [*command, f"tinydb=={version}"], capture_output=True, text=True, check=False, timeout=120
        )
        if done.returncode != 0:
            pytest.skip("the releases of tinydb cannot be downloaded here")
    rows = [json.loads(line) for line in (shared / "python_instances.jsonl").read_text().splitlines()]
    (measured,) = (row for row in rows if row.get("package") == "tinydb" and row["fix_version"] == "4.8.2")
    archives = sorted(tmp_path.glob("tinydb-*"))
    own = replace(
        judge,
        workspaces=Workspaces(tmp_path / "w", TreeStore(tmp_path / "t")),
        environments=Environments(tmp_path / "e"),
    )
    (candidate,) = collect_archives(archives, own.workspaces.trees, "msiemens/tinydb")
    found = validate(candidate, own, EnvironmentSpec(), _ONCE)
    assert isinstance(found, Instance), found
    assert list(found.fail_to_pass) == measured["FAIL_TO_PASS"]
    assert list(found.pass_to_pass) == measured["PASS_TO_PASS"]


def test_modules_that_run_their_own_tests_while_they_are_imported_can_be_controlled() -> None:
    source = "import calc\n\n\ndef test_a():\n    assert calc.add(1, 2) == 3\n\n\ntest_a()\nif True:\n    test_a()\n"
    control = control_source(source, {"test_a"}, "seed")
    assert control is not None and control.source.count("test_a()") == 1  # its definition
    fixture = "import pytest\n\n@pytest.fixture(params=[1])\ndef test_url(request):\n    return request.param\n\n"
    made = control_source(f"{fixture}def test_b(test_url):\n    assert test_url\n", {"test_b"}, "seed")
    assert made is not None and "return request.param" in made.source and made.source.count("def test_url") == 1
    for decorator in ('@pytest.mark.usefixtures("db")', '@pytest.mark.parametrize("fixture", [1])'):
        made = control_source(f"import pytest\n\n{decorator}\ndef test_c(fixture=1):\n    pass\n", {"test_c"}, "seed")
        assert made is not None and list(made.copies.values()) == ["test_c=raise"]
    names: dict[str, Any] = {}
    exec(control.source.replace("import calc", ""), names)  # noqa: S102 - of this test's own making
    with pytest.raises(AssertionError):
        names["test_a"]()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {
                "pyproject.toml": """
[project]
name = "My.Package"
dependencies = ["attrs >= 22.1, < 25 ; python_version >= '3.8'", "typing_extensions"]
[project.optional-dependencies]
docs = ["sphinx"]
test = ["pytest-mock>=3", "my-package[cli]", "mypy", "pytest<9"]
cli = ["click[extra]"]
"""
            },
            (
                "attrs>=22.1,<25 ; python_version >= '3.8'",
                "typing_extensions",
                "pytest-mock>=3",
                "click[extra]",
                "pytest<9",
            ),
        ),
        (
            {
                "pyproject.toml": """
[project]
name = "x"
[dependency-groups]
dev = [{include-group = "tests"}, "ruff"]
tests = ["freezegun", {include-group = "loop"}]
loop = [{include-group = "tests"}, "hypothesis"]
"""
            },
            ("freezegun", "hypothesis"),
        ),
        (
            {
                "pyproject.toml": """
[tool.poetry]
name = "x"
[tool.poetry.dependencies]
python = "^3.9"
rich = "^13.1"
lxml = {version = "*", optional = true}
[tool.poetry.group.dev.dependencies]
responses = "~0.2"
black = "*"
pytest-mypy = "*"
types-PyYAML = "^6"
pytest-asyncio = "0.23"
"""
            },
            ("rich>=13.1", "responses>=0.2", "pytest-asyncio==0.23"),
        ),
        (
            {
                "setup.py": "import setuptools\nNEEDS = ['six']\nsetuptools.setup(name='x', install_requires=NEEDS,\n"
                "    extras_require={'testing': ['mock'], 'docs': open('x')})\n",
                "requirements-dev.txt": "never\n",
            },
            ("six", "mock"),
        ),
        (
            {
                "setup.cfg": "[metadata]\nname = x\n[options]\ninstall_requires =\n    six\n"
                "[options.extras_require]\ntests =\n    nose2  # runner\n    pytz (>=2020)\n",
            },
            ("six", "nose2", "pytz>=2020"),
        ),
        (
            {
                "tox.ini": "[testenv]\ndeps =\n    py39: backport\n    webtest\n    -rrequirements/more.txt\n"
                "    {[x]deps}\n",
                "requirements/more.txt": "-r own.txt\n-r more.txt\nblinker==1.9 --hash=sha256:00\n"
                "--index-url http://evil\n",
                "requirements/own.txt": "jinja2\n",
            },
            ("webtest", "jinja2", "blinker==1.9"),
        ),
        (
            {
                "test-requirements.txt": "git+https://evil.example/x\nx @ https://evil.example/x.whl\n-e .\n/etc/x\n"
                "good ~= 1.4.2\n--index-url=http://evil\n$(id)\n"
            },
            ("good~=1.4.2",),
        ),
        # Odd and hostile ones: other kinds, a number of thousands of digits, white space that can be read in many ways,
        # options in a marker, a mark of Windows, lists that name themselves many times, and a chain without an end
        ({"pyproject.toml": '[project]\noptional-dependencies = ["x"]\ndependencies = ["a"]\n'}, ("a",)),
        ({"pyproject.toml": 'dependency-groups = "x"\n[tool.poetry]\ngroup = ["x"]\n'}, ()),
        ({"pyproject.toml": f"x = {'9' * 5000}\n", "setup.cfg": "[options]\ninstall_requires = a\n"}, ("a",)),
        (
            {"pyproject.toml": f'[project]\ndependencies = ["a {">=1     " * 14}@", "b{" " * 9999}@", "c  >=1 , <2"]'},
            ("c>=1,<2",),
        ),
        ({"pyproject.toml": '[project]\ndependencies = ["a; x\\n--index-url http://evil"]'}, ()),
        ({"pyproject.toml": '\ufeff[project]\ndependencies = ["a"]\n'}, ("a",)),
        ({"test-requirements.txt": "-r test-requirements.txt\n" * 50 + "-r ./test-requirements.txt\na\n"}, ("a",)),
        ({"pyproject.toml": "[dependency-groups]\ntest = [" + "{include-group = 'test'}, " * 50 + "'a']\n"}, ("a",)),
        (
            {
                "pyproject.toml": '[project]\nname = "own"\n[project.optional-dependencies]\n'
                f'test = ["own[{"test," * 50}test]", "a"]\n'
            },
            ("a",),
        ),
        (
            {"requirements/test.txt": "-r ../0.txt\na\n"} | {f"{n}.txt": f"-r {n + 1}.txt\n" for n in range(1500)},
            ("a",),
        ),
        ({"pyproject.toml": "[project\n", "setup.cfg": "x\n", "setup.py": "def (", "tox.ini": "["}, ()),
        ({}, ()),
    ],
)
def test_what_a_repository_declares_for_its_tests_is_read_and_not_run(
    files: dict[str, str], expected: tuple[str, ...], tmp_path: Path
) -> None:
    write_tree(tmp_path, files)
    assert declared_requirements(tmp_path) == expected


def test_outcomes_are_kept_by_the_limits_too_and_one_bad_candidate_ends_nothing(
    repository: Path, judge: Judge, environment: EnvironmentSpec, tmp_path: Path
) -> None:
    candidate = next(each.instance for each in collect_git(repository, judge.workspaces.trees, "owner/calc"))
    short = replace(judge, limits=judge.limits.model_copy(update={"timeout_s": 0.01}))
    valid, rejected = validate_all([candidate], short, environment, _ONCE, tmp_path)
    assert valid == [] and [each.reason for each in rejected] == ["timeout"]
    gone = replace(candidate, instance_id="gone", extra={**candidate.extra, "base_tree": "0" * 64})

    def declared(each: Instance) -> EnvironmentSpec:
        judge.workspaces.pristine(each)
        return environment

    valid, rejected = validate_all([gone, candidate], judge, declared, _ONCE, tmp_path)
    told = {each.instance_id: each.reason for each in rejected} | {each.instance_id: "valid" for each in valid}
    assert told["gone"] == "environment_failed" and told[candidate.instance_id] in ("valid", "no_f2p")


def test_environments_hold_what_is_asked_for_and_what_is_declared(tmp_path: Path) -> None:
    write_tree(tmp_path, {"requirements-test.txt": "mock\npytest<9\n"})
    asked = RequiredConfig(requirements=("six", "mock"))
    assert required_environment(asked, None).requirements == ("pytest", "six", "mock")
    assert required_environment(asked, tmp_path).requirements == ("pytest", "six", "mock", "pytest<9")


def test_lines_that_anybody_writes_are_no_leak_and_a_copy_is(tmp_path: Path) -> None:
    own = [f"    return self.part_{number} + other.part_{number}" for number in range(20)]
    usual = [
        "    def __repr__(self) -> str:",
        "    def __eq__(self, other: object) -> bool:",
        "    def f(self) -> None:",
    ]
    (tmp_path / "a.py").write_text("def before(value, other):\n    pass\n")

    def parts(lines: Sequence[str]) -> list[Part]:
        before = (tmp_path / "a.py").read_text()
        patch = diff_of({"a.py": before}.get, {"a.py": before + "".join(f"{line}\n" for line in lines)})
        return telling_lines(Instance("a__a-1", "a/a", "", patch=patch), tmp_path)

    others = "class Other:\n" + "\n".join(usual)
    assert not holds(others.encode(), parts([*usual, *own]))
    assert holds("\n".join([*usual, *own[:8], "x = 1"]).encode(), parts([*usual, *own]))
    assert not holds(others.encode(), parts(usual[:1]))  # one line, and nothing of what stands beside it
    assert holds(f"def before(value, other):\n    pass\n{usual[0]}\n".encode(), parts(usual[:1]))
    assert parts(["x = 1"]) == []
