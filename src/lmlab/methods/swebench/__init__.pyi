from .grading.run_report import make_run_report as make_run_report
from .grading.run_report import regrade as regrade
from .grading.verdict import Verdict as Verdict
from .grading.verdict import grade as grade
from .grading.verdict import grade_log as grade_log
from .instances.instance import Instance as Instance
from .instances.load import load_instances as load_instances
from .instances.predictions import Prediction as Prediction
from .instances.predictions import load_predictions as load_predictions

__all__ = [
    "Instance",
    "Prediction",
    "Verdict",
    "grade",
    "grade_log",
    "load_instances",
    "load_predictions",
    "make_run_report",
    "regrade",
]
