"""One run of tests in a sandbox: what the runner printed, what it wrote as data, and how it ended."""

from __future__ import annotations

import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmlab.distributed import scratch_folder
from lmlab.errors import UserError
from lmlab.files import ParseError
from lmlab.methods.swebench.grading.logs import END, EXIT_CODE, START, decode
from lmlab.methods.swebench.grading.parsers import parse
from lmlab.methods.swebench.grading.parsers.status import ERROR, FAILED, PASSED, XFAIL, LogContext, StatusMap
from lmlab.methods.swebench.grading.parsers.structured import junit
from lmlab.methods.swebench.harness.scripts import script_of_tests
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.patches.split import directives, runnable_tests
from lmlab.sandbox import ExecResult, Mount, Session
from lmlab.sandbox.box import get_file

PYTEST = ("python", "-m", "pytest", "-rA", "--tb=short", "-p", "no:cacheprovider", "-o", "addopts=")
_RESULTS, _JUNIT, _LIST = "/results", "junit.xml", "arguments"
_MOST_XML = 64 << 20  # bytes: the code under test writes it, and could fill memory
_MOST_ARGUMENTS = 100_000  # bytes of file names on a command line; more are read from a file
_OF_A_FILE = "import sys, pytest; sys.exit(pytest.main(open(sys.argv[1]).read().split('\\0')))"


@dataclass(frozen=True)
class RunOfTests:
    """A run.

    Attributes:
        result: how the command ended.
        output: what it printed.
        logged: outcomes that the parser finds in the output.
        structured: outcomes in the runner's JUnit XML; None where it left none.
    """

    result: ExecResult
    output: str
    logged: StatusMap
    structured: StatusMap | None

    def log(self) -> str:
        """The output as the log of a harness, with marks. Marks that the code has printed are made harmless."""
        body = self.output.replace(">>>>>", "> > >")
        if self.result.timed_out or self.result.exit_code is None:
            return f"{START}\n{body}"
        return f"{START}\n{body}\n{END}\n{EXIT_CODE}: {self.result.exit_code}\n"


def command_of(instance: Instance, whole: bool = False) -> list[str]:
    """The command without files: the instance's own, or pytest as published instances run it.

    Arguments:
        whole: that runs all tests of the repository: of a published script without the names of tests in it.

    Raises:
        UserError: all tests are asked for, and the script names its tests in a way that is not known.
    """
    own = instance.extra.get("test_command")
    if isinstance(own, str) and own.strip():
        return shlex.split(own)
    if isinstance(own, list) and own:
        return list(own)
    if in_published_image(instance):
        named = directives(instance.test_patch, instance.repo) if whole else ()
        if whole and not named:  # nothing to leave out would run the script's own tests again
            raise UserError(
                f"The test patch of {instance.instance_id} names no tests, so that it cannot be told how all are run.",
                "Leave out --full-suite.",
            )
        return ["bash", "-c", script_of_tests(instance.eval_script, named)]
    return list(PYTEST)


def in_published_image(instance: Instance) -> bool:
    """Whether the instance is one of those whose environment is an image and whose command is a script."""
    return bool(instance.image and instance.eval_script) and "environment" not in instance.extra


def files_of(instance: Instance) -> list[str]:
    """The test files that are run: the instance's own list, or those of its test patch that a runner takes."""
    own = instance.extra.get("test_files")
    if isinstance(own, list) and own:
        return [str(each) for each in own]
    if in_published_image(instance):
        return []  # its script names them
    return runnable_tests(directives(instance.test_patch, instance.repo))


def is_pytest(command: Sequence[str]) -> bool:
    """Whether a command runs pytest, which can write its results as data."""
    return any(part == "pytest" or part.endswith("/pytest") for part in command[:4])


def run_tests(
    session: Session,
    command: Sequence[str],
    files: Sequence[str],
    parser: str = "parse_log_pytest",
    context: LogContext | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> RunOfTests:
    """Run test files in a session's workspace.

    pytest's results come by a file outside of the workspace. The code under test can write there too, being in the same
    process; that is why a good result needs a control.

    Raises:
        SandboxFailure: the sandbox broke.
    """
    with scratch_folder("results") as folder:
        mount = Mount(folder, _RESULTS, writable=True)
        inside = session.place(mount)
        argv = list(command)
        if structured := is_pytest(command):
            argv += ["-o", "junit_family=xunit1", f"--junitxml={inside}/{_JUNIT}"]
        if structured and sum(len(file.encode()) + 1 for file in files) > _MOST_ARGUMENTS:
            place = next(number for number, part in enumerate(argv) if part.rpartition("/")[2] == "pytest")
            (folder / _LIST).write_text("\0".join([*argv[place + 1 :], *files]))
            argv = ["python", "-c", _OF_A_FILE, f"{inside}/{_LIST}"]
        else:
            argv += files
        by_script = argv[:2] == ["bash", "-c"]
        sink = io.BytesIO()
        variables = {} if by_script else {"PYTHONPATH": f"{session.root}:{session.root}/src"}
        if by_script:  # pytest somewhere in a script leaves its results too
            variables["PYTEST_ADDOPTS"] = f"-o junit_family=xunit1 --junitxml={inside}/{_JUNIT}"
        variables |= env or {}
        result = session.run(argv, env=variables, timeout=timeout, sink=sink, mounts=[mount])
        output = decode(sink.getvalue())
        found = _structured(folder) if structured or by_script else None
        return RunOfTests(result, output, _logged(parser, output, context), found)


def _logged(parser: str, output: str, context: LogContext | None) -> StatusMap:
    try:
        return parse(parser, output, context)
    except Exception:  # output that the code has made up may break a parser in any way
        return {}


def _structured(folder: Path) -> StatusMap | None:
    try:
        text = get_file(folder, _JUNIT, _MOST_XML).decode("utf-8", "replace")
        return junit(text, LogContext())
    except (OSError, ParseError):
        return None


def passing(status: str | None) -> bool:
    """Whether an outcome counts as passed."""
    return status in (PASSED, XFAIL)


def disagreement(run: RunOfTests) -> str | None:
    """Why exit status and outcomes of a run cannot both be true."""
    code = run.result.exit_code
    outcomes = [*(run.structured or {}).values(), *run.logged.values()]
    bad = any(status in (FAILED, ERROR) for status in outcomes)
    if code == 0 and bad:
        return "tests have failed, and the runner ended with 0"
    if code != 0 and not bad:
        return f"no test has failed, and the runner ended with {code}"
    return None


def loosest(run: RunOfTests) -> StatusMap:
    """Outcomes where a test counts as passed if either account says so."""
    structured = {_until_blank(name): status for name, status in (run.structured or {}).items()}
    found = {**structured, **(run.structured or {}), **run.logged}
    for account in (structured, run.logged):
        found |= {test: status for test, status in account.items() if passing(status)}
    return found


def _until_blank(name: str) -> str:
    """An id as the usual parser of logs has it."""
    return name.split()[0] if name.split() else name


def statuses_of(run: RunOfTests) -> StatusMap:
    """Outcomes by the ids of logs, which published lists use; a test has passed only if both accounts say so.

    They differ where the log is forged, and where a test goes on after a part of it has failed (subtests), of which
    pytest's log says PASSED.
    """
    found: StatusMap = {}
    for name, status in (run.structured or {}).items():
        for key in {name, _until_blank(name)}:
            if key not in found or passing(found[key]):
                found[key] = status
    for name, status in run.logged.items():
        if name not in found or passing(found[name]):
            found[name] = status
    return found
