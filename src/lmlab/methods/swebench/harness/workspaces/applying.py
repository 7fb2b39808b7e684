"""How a patch gets into a tree: the tries of the public harness in their order, in the sandbox."""

from __future__ import annotations

import io
from dataclasses import dataclass

from lmlab.distributed import scratch_folder
from lmlab.methods.swebench.grading.logs import decode
from lmlab.methods.swebench.harness.workspaces.git import VARIABLES
from lmlab.sandbox import Mount, SandboxFailure, Session

_PLACE, _NAME = "/patch", "model.diff"
COMMANDS = (
    "git apply --verbose",
    "git apply --verbose --3way",
    "git apply --verbose --reject",
    "patch --batch --forward --fuzz=5 -p1 -i",
)
# Each try starts from a clean tree. A tree that has the patch already counts as patched.
_SCRIPT = """
clean() { git checkout -q -- . ; git clean -qfd; }
n=0
while IFS= read -r try; do
  [ "$n" -gt 0 ] && clean
  n=$((n + 1))
  if $try "$1" >/tmp/said 2>&1; then echo "applied: $try"; exit 0; fi
  echo "== $try"; tail -n 8 /tmp/said
done <<END
{commands}
END
if git apply --check --reverse "$1" 2>/dev/null; then echo "applied: already"; exit 0; fi
clean
exit 71
"""
_NOT_APPLIED = 71  # the script's own, which no command in it exits with
_NO_PATCH = ("No valid patches in input", "unrecognized input", "Only garbage was found")
_NO_SPACE = "No space left on device"


@dataclass(frozen=True)
class Applied:
    """What came of the tries.

    Attributes:
        by: the command that took the patch; empty where none did.
        said: what the tries printed.
        exhausted: time, memory or disk were used up, by the patch or by whatever else runs on the machine.
    """

    by: str
    said: str
    exhausted: bool = False

    @property
    def why_not(self) -> str:
        """Why no try took the patch, in a sentence: what the first of them says."""
        lines = [line.strip() for line in self.said.splitlines() if line.strip() and not line.startswith("== ")]
        if any(sign in line for line in lines for sign in _NO_PATCH):
            return "it is no patch: git finds no change of a file in it"
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        said = (errors or lines or ["they say nothing"])[0]
        return f"neither git apply nor patch takes it: {said[:300]}"


def apply_patch(session: Session, patch: str, timeout: float = 60.0) -> Applied:
    """Apply a patch in a session's workspace.

    Raises:
        SandboxFailure: the tries did not come to an end.
    """
    with scratch_folder("patch") as folder:
        (folder / _NAME).write_bytes(patch.encode("utf-8", "surrogateescape"))
        mount = Mount(folder, _PLACE)
        script = _SCRIPT.replace("{commands}", "\n".join(COMMANDS))
        sink = io.BytesIO()
        argv = ["sh", "-c", script, "apply", f"{session.place(mount)}/{_NAME}"]
        result = session.run(argv, env=_variables(), timeout=timeout, sink=sink, mounts=[mount])
    said = decode(sink.getvalue())
    if result.exit_code == 0:
        return Applied(said.rpartition("applied: ")[2].strip(), said)
    if result.exit_code == _NOT_APPLIED:
        return Applied("", said, exhausted=_NO_SPACE in said)
    if result.timed_out or result.oom_killed or result.disk_exceeded:
        return Applied("", f"applying it used up the limits ({result})", exhausted=True)
    raise SandboxFailure(f"git could not be run in the sandbox: {said.strip()[-300:] or result.exit_code}.")


def _variables() -> dict[str, str]:
    # Configuration comes by the environment: what .git of the tree says must not run anything
    settings = {"core.hooksPath": "/dev/null", "core.fsmonitor": "false", "safe.directory": "*"}
    found = {key: value for key, value in VARIABLES.items() if key != "HOME"}
    found["GIT_CONFIG_COUNT"] = str(len(settings))
    for number, (key, value) in enumerate(settings.items()):
        found |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return found
