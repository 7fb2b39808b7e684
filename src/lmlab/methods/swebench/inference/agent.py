"""An agent with one tool: commands of a shell in the sandbox, until it says that it is done.

The workspace holds the tree of the issue and its one commit; tests of the solution are not in it, and there is no
network. What was changed is the patch.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmlab.endpoints import ChatRequest, Endpoint, Reply, answer
from lmlab.files import write_json
from lmlab.methods.swebench.grading.logs import decode
from lmlab.methods.swebench.harness.judge import Judge
from lmlab.methods.swebench.harness.workspaces.workspace import diff_against
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.instances.predictions import Prediction

Ask = Callable[[Sequence[dict[str, str]]], Reply]
DONE = "SUBMIT"
_COMMAND = re.compile(r"```(?:bash|sh)\n(.*?)```", re.DOTALL)
_SHOWN = 8_000  # characters of output, head and tail
_SYSTEM = (
    "You repair a repository by commands of a shell. Answer each time with one command in a block of ```bash, and"
    f" nothing after it. When the issue is solved, answer with ```bash\n{DONE}\n```."
)


@dataclass
class Trajectory:
    """What an agent did.

    Attributes:
        messages: the whole conversation.
        steps: commands with their exit status.
        end: `submitted`, `steps` or `cost` used up, or `failed` where there was no answer.
        cost_usd: of all answers, those too that held no command.
    """

    messages: list[dict[str, str]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    end: str = "steps"
    cost_usd: float = 0.0


def run_agent(
    instance: Instance,
    judge: Judge,
    ask: Ask,
    model: str,
    most_steps: int = 30,  # each reads all before it, so that cost grows with the square
    most_cost_usd: float | None = None,
    command_timeout_s: float = 60.0,  # time for some tests; what hangs costs no more
    keep: Path | None = None,
) -> tuple[Prediction, Trajectory]:
    """Let a model work on an issue.

    Arguments:
        ask: gives the next reply to a conversation.
        keep: a folder for the trajectory, ID.traj.json.

    Raises:
        SandboxFailure: the sandbox broke.
    """
    found = Trajectory(
        [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": f"<issue>\n{instance.problem_statement.strip()}\n</issue>"},
        ]
    )
    with judge.workspaces.fresh(instance) as workspace:
        with judge.session(instance, workspace) as session:
            for _ in range(most_steps):
                reply = ask(found.messages)
                found.cost_usd += reply.cost_usd or 0.0
                if not reply.choices:
                    found.end = "failed"
                    break
                text = reply.choices[0].text
                found.messages.append({"role": "assistant", "content": text})
                command = _COMMAND.search(text)
                if command is None:
                    said = "There is no command in your answer. Write one block of ```bash."
                elif command[1].strip() == DONE:
                    found.end = "submitted"
                    break
                else:
                    sink = io.BytesIO()
                    result = session.run(["bash", "-c", command[1]], timeout=command_timeout_s, sink=sink)
                    said = _told(decode(sink.getvalue()), result.exit_code, result.timed_out)
                    found.steps.append({"command": command[1], "exit_code": result.exit_code, "wall_s": result.wall_s})
                found.messages.append({"role": "user", "content": said})
                if most_cost_usd is not None and found.cost_usd >= most_cost_usd:
                    found.end = "cost"
                    break
        patch = diff_against(judge.workspaces.pristine(instance), workspace)
    if keep is not None:
        write_json(keep / f"{instance.instance_id}.traj.json", {"instance_id": instance.instance_id, **vars(found)})
    extra = {"cost": found.cost_usd, "end": found.end, "steps": len(found.steps)}
    return Prediction(instance.instance_id, model, patch, extra), found


def asker(endpoint: Endpoint, cache: Path, max_tokens: int = 1024, temperature: float = 0.0) -> Ask:
    """Asks an endpoint; an answered conversation is not paid for again."""

    def ask(messages: Sequence[dict[str, str]]) -> Reply:
        replies: dict[int, Reply] = {}
        request = ChatRequest(tuple(messages), max_tokens, temperature)
        answer(endpoint, [request], replies.__setitem__, cache)
        return replies[0]

    return ask


def _told(output: str, exit_code: int | None, timed_out: bool) -> str:
    if len(output) > _SHOWN:
        half = _SHOWN // 2
        output = f"{output[:half]}\n[{len(output) - 2 * half:,} characters left out]\n{output[-half:]}"
    end = "the time is over; what it had printed" if timed_out else f"exit status {exit_code}"
    return f"[{end}]\n{output}"
