from .asking import Asking
from .build import TOLERANCE, NoRoom, build_context, build_instances, header_of, summary_of
from .config import PRESETS, TASKS, LongPPLConfig, LongSettings, Mode
from .endpoint_writer import EndpointWriter
from .figures import effective_length, score_over_contexts, summarize
from .helmet.files import HelmetSet, helmet_instances, read_helmet_config, write_helmet_results
from .helmet.names import Reached, scores, suites, task_name
from .instance import (
    SUITE_VERSION,
    Header,
    Instance,
    InstanceFile,
    by_context,
    prompt_of,
    read_header,
    read_instances,
    write_instances,
)
from .long_ppl import LongPPL, key_tokens, long_perplexity
from .measure import ModelWriter, Writer, Written, judge, measure_forced, measure_written, measurer
from .run import MEASURED, RESULTS, check_comparable, read_results, read_suite_rows, run_suite

__all__ = [
    "MEASURED",
    "PRESETS",
    "RESULTS",
    "SUITE_VERSION",
    "TASKS",
    "TOLERANCE",
    "Asking",
    "EndpointWriter",
    "Header",
    "HelmetSet",
    "Instance",
    "InstanceFile",
    "LongPPL",
    "LongPPLConfig",
    "LongSettings",
    "Mode",
    "ModelWriter",
    "NoRoom",
    "Reached",
    "Writer",
    "Written",
    "build_context",
    "build_instances",
    "by_context",
    "check_comparable",
    "effective_length",
    "header_of",
    "helmet_instances",
    "judge",
    "key_tokens",
    "long_perplexity",
    "measure_forced",
    "measure_written",
    "measurer",
    "prompt_of",
    "read_header",
    "read_helmet_config",
    "read_instances",
    "read_results",
    "read_suite_rows",
    "run_suite",
    "score_over_contexts",
    "scores",
    "suites",
    "summarize",
    "summary_of",
    "task_name",
    "write_helmet_results",
    "write_instances",
]
