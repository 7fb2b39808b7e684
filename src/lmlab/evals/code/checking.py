"""Whether answers pass their tests: each is run in a sandbox, in a process that its tests are not in."""

from __future__ import annotations

import io
import json
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmlab.distributed import scratch_folder
from lmlab.evals.code.problems import Problem
from lmlab.sandbox import Box, Executor, Limits

Status = Literal["passed", "failed", "timed out", "out of memory", "forged"]
_RUNNER = Path(__file__).with_name("in_sandbox.py")
_OWN_RULE = "forged: the answer compares by a rule of its own"
_REASON = 300  # characters


@dataclass(frozen=True)
class Outcome:
    """How an answer fared.

    Attributes:
        status: `forged` is an answer whose value compares by a rule of its own where a plain value is asked for.
        reason: the last line of its errors.
    """

    status: Status
    reason: str = ""


def check_answers(
    executor: Executor, answers: Sequence[tuple[Problem, str]], limits: Limits, workers: int = 1
) -> Iterator[Outcome]:
    """The outcome of each answer, in order.

    Raises:
        SandboxFailure: the sandbox broke: that is no statement about an answer.
    """
    with ThreadPoolExecutor(max(1, workers)) as pool:
        yield from pool.map(lambda each: check_answer(executor, each[0], each[1], limits), answers)


def check_answer(executor: Executor, problem: Problem, answer: str, limits: Limits) -> Outcome:
    """The outcome of one answer."""
    program = f"{problem.setup}\n{problem.program(answer)}"
    if "\0" in program or any(0xD800 <= ord(each) < 0xE000 for each in program):
        return Outcome("failed", "the answer is no text that Python reads")
    word = secrets.token_hex(16)
    job = {
        "program": program,
        "given": problem.given(),
        "test": problem.test,
        "entry_point": problem.entry_point,
        "asks_for_class": problem.asks_for_class,
        "word": word,
    }
    output = io.BytesIO()
    with (
        scratch_folder("code") as folder,
        executor.open(Box(folder, python=Path(sys.executable)), limits) as session,
    ):
        session.put("run.py", _RUNNER.read_bytes())
        result = session.run(["python3", "-I", "run.py"], stdin=json.dumps(job).encode(), sink=output)
    last = (output.getvalue().decode("utf-8", "replace").strip().splitlines() or [""])[-1]
    reason = last[:_REASON]
    if result.timed_out:
        return Outcome("timed out", f"after {limits.timeout_s:g} s")
    if result.oom_killed:
        return Outcome("out of memory", f"more than {limits.memory_mib} MiB")
    if result.exit_code == 0 and last == word:
        return Outcome("passed")
    if _OWN_RULE in reason:
        return Outcome("forged", "it compares by a rule of its own")
    return Outcome("failed", "it ended before its tests" if result.exit_code == 0 else reason)


def check_solutions(executor: Executor, problems: Sequence[Problem], limits: Limits) -> dict[str, Outcome]:
    """The outcomes of a benchmark's own solutions, by id: one that does not pass makes its problem worthless."""
    known = [(each, each.solution) for each in problems if each.solution is not None]
    outcomes = check_answers(executor, known, limits, workers_here())
    return {problem.id: outcome for (problem, _), outcome in zip(known, outcomes, strict=True)}


def workers_here() -> int:
    """Answers that are run at once: one a core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
