"""SWE-bench (Jimenez et al. 2024): a benchmark out of a repository of one fix, and three patches that want to pass.

The repository is made here, so that nothing is downloaded; tests run in a sandbox (bubblewrap). The third patch repairs
nothing and rewrites the runner in its own process: exit status, results and log all say that the tests pass.

python examples/swebench.py INTERPRETER-WITH-PYTEST FOLDER
"""

import subprocess
import sys
from pathlib import Path

from lmlab.methods.swebench import Environments, EnvironmentSpec, Judge, TreeStore, Workspaces, collect_git, validate
from lmlab.sandbox import Limits, choose_executor

if len(sys.argv) < 3:
    sys.exit(__doc__)
python, folder = sys.argv[1], Path(sys.argv[2])
repository = folder / "shop"
(repository / "shop").mkdir(parents=True)
(repository / "tests").mkdir()


def commit(message: str, source: str, tests: str) -> None:
    (repository / "shop" / "__init__.py").write_text(source)
    (repository / "tests" / "test_shop.py").write_text("import shop\n\n\n" + tests)
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", message]):
        subprocess.run(["git", *command], cwd=repository, check=True)


free = "def test_free():\n    assert shop.price(5, 0) == 5\n"
commit("Prices", "def price(value, discount):\n    return value + discount\n", free)
cheap = "\n\ndef test_cheap():\n    assert shop.price(5, 2) == 3\n"
commit("Subtract discounts", "def price(value, discount):\n    return value - discount\n", free + cheap)

judge = Judge(
    choose_executor(),
    Workspaces(folder / "cache", TreeStore(folder / "trees")),
    Environments(folder / "environments"),
    Limits(timeout_s=60, memory_mib=512),
)
(candidate,) = collect_git(repository, judge.workspaces.trees, "example/shop")
instance = validate(candidate, judge, EnvironmentSpec(requirements=(), python=python))
print(f"{instance.instance_id}: {instance.problem_statement.strip()}; to repair: {', '.join(instance.fail_to_pass)}")

wrong = instance.patch.replace("+    return value - discount", "+    return value * discount")
hook = "+import _pytest.python\n+_pytest.python.Function.runtest = lambda item: None\n"
forged = instance.patch.replace("@@ -1,2 +1,2 @@\n", f"@@ -1,2 +1,4 @@\n{hook}")
forged = forged.replace("+    return value - discount", "+    return value + discount")
for name, patch in (("reference", instance.patch), ("wrong", wrong), ("forged", forged)):
    print(f"{name}: {judge.judge(instance, patch).status}")
