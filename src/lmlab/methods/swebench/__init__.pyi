from .building.candidate import Candidate as Candidate
from .building.candidate import Rejection as Rejection
from .building.collect import collect_archives as collect_archives
from .building.collect import collect_git as collect_git
from .building.validate import validate as validate
from .grading.run_report import make_run_report as make_run_report
from .grading.run_report import regrade as regrade
from .grading.verdict import Verdict as Verdict
from .grading.verdict import grade as grade
from .grading.verdict import grade_log as grade_log
from .harness.environment import Environments as Environments
from .harness.environment import EnvironmentSpec as EnvironmentSpec
from .harness.evaluate import evaluate as evaluate
from .harness.judge import Judge as Judge
from .harness.result import Result as Result
from .harness.reward import RewardFn as RewardFn
from .harness.workspaces.trees import TreeStore as TreeStore
from .harness.workspaces.workspace import Workspaces as Workspaces
from .instances.instance import Instance as Instance
from .instances.load import load_instances as load_instances
from .instances.predictions import Prediction as Prediction
from .instances.predictions import load_predictions as load_predictions

__all__ = [
    "Candidate",
    "EnvironmentSpec",
    "Environments",
    "Instance",
    "Judge",
    "Prediction",
    "Rejection",
    "Result",
    "RewardFn",
    "TreeStore",
    "Verdict",
    "Workspaces",
    "collect_archives",
    "collect_git",
    "evaluate",
    "grade",
    "grade_log",
    "load_instances",
    "load_predictions",
    "make_run_report",
    "regrade",
    "validate",
]
