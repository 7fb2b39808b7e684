from .box import Box as Box
from .box import Mount as Mount
from .choose import EXECUTORS as EXECUTORS
from .choose import choose_executor as choose_executor
from .choose import probe_all as probe_all
from .limits import ExecResult as ExecResult
from .limits import Limits as Limits
from .limits import SandboxFailure as SandboxFailure
from .session import Executor as Executor
from .session import ExecutorInfo as ExecutorInfo
from .session import Session as Session

__all__ = [
    "EXECUTORS",
    "Box",
    "ExecResult",
    "Executor",
    "ExecutorInfo",
    "Limits",
    "Mount",
    "SandboxFailure",
    "Session",
    "choose_executor",
    "probe_all",
]
