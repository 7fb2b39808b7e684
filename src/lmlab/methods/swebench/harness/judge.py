"""One patch put to the test: where it is run, by what limits, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock

from lmlab.errors import LmlabError
from lmlab.methods.swebench.grading.parsers.status import LogContext
from lmlab.methods.swebench.harness.changes import States
from lmlab.methods.swebench.harness.environment import Environment, EnvironmentFailure, Environments, EnvironmentSpec
from lmlab.methods.swebench.harness.result import Result
from lmlab.methods.swebench.harness.suite import Suite
from lmlab.methods.swebench.harness.testing import RunOfTests, command_of, files_of, in_published_image, run_tests
from lmlab.methods.swebench.harness.trial import Ended, Trial
from lmlab.methods.swebench.harness.workspaces.workspace import Workspaces
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.sandbox import Box, Executor, Limits, Session

# A control has several copies of a test, and each fails with a traceback, which takes the runner longer than a pass:
# with 388 tests to be repaired, 7 times the processor time of the tests
_PATIENCE = 8.0


class Memory:
    """What a process has found out, and others find out for themselves."""

    def __init__(self) -> None:
        self.controls: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
        self.solutions: dict[str, States] = {}
        self.suites: dict[str, Suite | str] = {}  # or why there is none
        self.lock = Lock()
        self.suite_locks: dict[str, Lock] = {}

    def __reduce__(self) -> tuple[type[Memory], tuple[()]]:
        """It stays behind when a judge goes to another process."""
        return Memory, ()


@dataclass
class Judge:
    """Puts patches to the test.

    Attributes:
        executor: where they run.
        workspaces, environments: what they run on and in.
        limits: of one run.
        control: repeat a run that would count as a pass with tests that must fail. Without it a pass can be forged.
        reuse: take the control of the same changes for the same instance from before: that of validation for the
            reference solution, and that of an equal patch.
        full_suite: run all tests of the repository on patches that are resolved, and note those that break.
    """

    executor: Executor
    workspaces: Workspaces
    environments: Environments
    limits: Limits = field(default_factory=Limits)
    control: bool = True
    reuse: bool = True
    full_suite: bool = False
    memory: Memory = field(default_factory=Memory, repr=False, compare=False)

    def judge(self, instance: Instance, patch: str | None, keep: str | Path | None = None) -> Result:
        """The result of a patch. Whatever fails that is not the patch is `infra`, and no exception.

        Arguments:
            keep: a folder for the log of the run.
        """
        keep = None if keep is None else Path(keep)
        began = time.monotonic()
        trial = Trial(self, instance, patch or "", keep)
        try:
            trial.run()
            result = trial.result("resolved", "")
        except Ended as ended:
            result = trial.result(ended.status, ended.reason)
        except (LmlabError, OSError) as failure:
            result = trial.result("infra", (str(failure).splitlines() or [type(failure).__name__])[0])
        except Exception as failure:  # one odd patch must not end the judging of thousands
            result = trial.result("infra", f"the harness has failed ({type(failure).__name__}: {failure})"[:500])
        return replace(result, wall_s=time.monotonic() - began)

    def environment_of(self, instance: Instance) -> EnvironmentSpec:
        """What the instance says of it, or an environment with pytest."""
        told = instance.extra.get("environment")
        return EnvironmentSpec.model_validate(told) if isinstance(told, dict) else EnvironmentSpec()

    def built(self, instance: Instance) -> Environment:
        """The environment, built where it is not there.

        Raises:
            EnvironmentFailure: it cannot be built, or is an image and the executor runs none.
        """
        spec = self.environment_of(instance)
        if not in_published_image(instance):
            return self.environments.ensure(spec)
        if not self.environments.images:
            raise EnvironmentFailure(
                f"{instance.instance_id} runs in the image '{instance.image}', and the executor runs no images.",
                "Use: --executor docker",
            )
        return Environment(spec, None, (), 0, instance.image)

    @contextmanager
    def session(self, instance: Instance, workspace: str | Path) -> Iterator[Session]:
        """A session in the instance's environment."""
        workspace = Path(workspace)
        environment = self.built(instance)
        box = Box(
            workspace,
            python=environment.python,
            variables=dict(environment.spec.env),
            image=environment.image,
            user=0 if in_published_image(instance) else 1000,
        )
        with self.executor.open(box, self.limits) as session:
            yield session

    def test(
        self,
        instance: Instance,
        workspace: str | Path,
        files: Sequence[str] | None = None,
        whole: bool = False,
        patience: float = 1.0,
        **env: str,
    ) -> RunOfTests:
        """Run the instance's tests in a workspace.

        Arguments:
            files: these in place of the instance's own.
            whole: all tests of the repository.
            patience: so many times the time of the limits.

        Raises:
            UserError: all tests are asked for, and a published script names its own in a way that is not known.
        """
        workspace = Path(workspace)
        command = command_of(instance, whole)
        if files is None:
            files = [] if whole else files_of(instance)
        with self.session(instance, workspace) as session:
            return run_tests(
                session,
                command,
                files,
                instance.log_parser,
                LogContext(instance.instance_id, instance.version),
                env=env,
                timeout=patience * self.limits.timeout_s,
            )

    def test_control(self, instance: Instance, workspace: str | Path) -> RunOfTests:
        """Run the tests of a workspace whose test files are controls."""
        return self.test(instance, workspace, patience=_PATIENCE)
