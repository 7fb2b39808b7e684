"""Instances as an environment of the package `verifiers`: a dataset and a module with `load_environment`.

The module asks lmlab's `RewardFn` for rewards, so that they are verdicts with a control. Where the surroundings fail
there is no reward: the module raises the package's error for that.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from lmlab.errors import UserError
from lmlab.files import write_jsonl, write_text
from lmlab.methods.swebench.exchange.tasks import with_tree
from lmlab.methods.swebench.harness.workspaces.workspace import Workspaces
from lmlab.methods.swebench.inference.infer import prompts_of
from lmlab.methods.swebench.inference.prompts import messages_of
from lmlab.methods.swebench.inference.settings import InferConfig
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.instances.load import write_instances

_MODULE = '''"""Issues of repositories. A reward is a verdict of lmlab: the patch of an answer is run in a sandbox."""

import asyncio
from pathlib import Path

import verifiers as vf
from datasets import Dataset
from lmlab.files import read_jsonl
from lmlab.methods.swebench import RewardFn, load_instances
from lmlab.methods.swebench.config import SandboxConfig
from lmlab.methods.swebench.harness.open import open_judge
from lmlab.methods.swebench.patches.extract import extract_patch

_HERE = Path(__file__).parent / "data"


def load_environment(timeout_s: float = TIMEOUT, executor: str = "auto", **kwargs) -> vf.Environment:
    """The environment; `executor` is where patches are run."""
    judge = open_judge(SandboxConfig(executor=executor, timeout_s=timeout_s), _HERE / "trees")
    reward = RewardFn(load_instances(str(_HERE / "instances.jsonl")), judge)

    async def resolved(completion, info) -> float:
        said = completion if isinstance(completion, str) else completion[-1]["content"]
        found = await asyncio.to_thread(reward.judged, info["instance_id"], extract_patch(said))
        if not found.is_verdict:  # the surroundings have failed, of which the model knows nothing
            raise getattr(vf, "InfraError", RuntimeError)(found.reason)
        return float(found.resolved)

    rows = Dataset.from_list(list(read_jsonl(_HERE / "dataset.jsonl")))
    return vf.SingleTurnEnv(dataset=rows, rubric=vf.Rubric(funcs=[resolved]), **kwargs)
'''


def write_verifiers(
    folder: Path,
    instances: Sequence[Instance],
    workspaces: Workspaces,
    config: InferConfig,
    name: str = "lmlab-swe",
    timeout_s: float = 1800.0,
) -> Path:
    """Write a package with the environment; its module.

    Arguments:
        config: what the model is shown. Answers are diffs.

    Raises:
        UserError: the name is no name of a package, or the answers are in another form.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise UserError(f"'{name}' is no name of a package.", "Use small letters, digits and hyphens.")
    if config.answers != "diff":
        raise UserError("An environment of verifiers takes answers as diffs.", "Leave out --answers.")
    instances = [with_tree(each, workspaces) for each in instances]
    module = name.replace("-", "_")
    data = folder / module / "data"
    rows = []
    for number, (instance, prompt) in enumerate(zip(instances, prompts_of(instances, workspaces, config), strict=True)):
        info = {"instance_id": instance.instance_id, "repo": instance.repo, "digest": instance.digest}
        rows.append(
            {
                "example_id": number,
                "prompt": list(messages_of(prompt)),
                "answer": instance.patch,
                "info": json.dumps(info),
                "task": name,
            }
        )
        packed = f"{workspaces.tree_of(instance)}.tar.gz"
        (data / "trees").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(workspaces.trees.folder / packed, data / "trees" / packed)
    write_jsonl(data / "dataset.jsonl", rows)
    write_instances(data / "instances.jsonl", instances)
    place = folder / module / "__init__.py"
    write_text(place, _MODULE.replace("TIMEOUT", repr(timeout_s)))
    write_text(
        folder / "pyproject.toml",
        f'[project]\nname = "{name}"\nversion = "0.1.0"\nrequires-python = ">=3.11"\n'
        f'dependencies = ["verifiers", "lmlab[swe]"]\n\n[build-system]\nrequires = ["hatchling"]\n'
        f'build-backend = "hatchling.build"\n\n[tool.hatch.build]\ninclude = ["{module}/**"]\n',
    )
    return place
