"""A model's measurement: instances, the suite, and short tasks beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmlab.endpoints import Endpoint
from lmlab.evals import Evaluator, Settings, find_tasks, run_task, task_summary
from lmlab.evals.long import (
    Asking,
    EndpointWriter,
    InstanceFile,
    LongSettings,
    Mode,
    build_instances,
    header_of,
    measure_written,
    measurer,
    read_instances,
    run_suite,
    write_instances,
)
from lmlab.files import write_json
from lmlab.progress import console

INSTANCES, SHORT = "instances.jsonl", "short.json"


def instances_for(asking: Asking, settings: LongSettings, path: Path) -> InstanceFile:
    """Build a file of instances and read it back; tasks that a length leaves no room for are named and left out."""
    left_out: list[str] = []
    write_instances(path, header_of(asking, settings), build_instances(asking, settings, left_out))
    for line in dict.fromkeys(left_out):
        console.print(f"Left out: {line}", markup=False)
    return read_instances(path, asking.tokenizer.fingerprint)


def evaluate(
    evaluator: Evaluator,
    file: InstanceFile,
    directory: Path,
    *,
    model: str,
    mode: Mode,
    chat: bool = False,
    controls: bool = True,
    share: bool = True,
    short_tasks: Sequence[str] = (),
    short_limit: int | None = 200,
) -> dict[str, Any]:
    """Measure a model on a file of instances, and on short tasks; `long.json` and `short.json` in `directory`.

    Raises:
        UserError: the file was built for another tokenizer or wording, or an instance is longer than the window.
    """
    asking = Asking(evaluator.tokenizer, chat)
    scorer = evaluator.scorer
    results = run_suite(
        file,
        measurer(evaluator, asking, mode, controls=controls, share=share),
        directory,
        model=model,
        mode=mode,
        max_seq_len=scorer.max_seq_len,
        template=asking.template,
        device=scorer.description,
    )
    if short_tasks:
        results["short"] = _measure_short(evaluator, short_tasks, short_limit, directory)
        write_json(directory / SHORT, results["short"])
    return results


def _measure_short(evaluator: Evaluator, names: Sequence[str], limit: int | None, directory: Path) -> dict[str, Any]:
    found = {}
    for task in find_tasks(names):
        rows = run_task(evaluator, task, Settings(limit, too_long="skip"), directory / f"short-{task.name}.jsonl")
        assert rows is not None
        found[task.name] = task_summary(task, rows)
    return found


def evaluate_endpoint(
    name: str, file: InstanceFile, directory: Path, base_url: str | None, key_env: str | None, controls: bool = True
) -> dict[str, Any]:
    """Measure a model behind an OpenAI-compatible endpoint, `openai:NAME`, by what it writes.

    Raises:
        UserError: the address or the key is wrong, or a prompt is too long for it.
    """
    given = {"base_url": base_url, "key_env": key_env}
    endpoint = Endpoint.named(name, **{key: value for key, value in given.items() if value is not None})
    writer = EndpointWriter(endpoint, directory / "replies.sqlite")
    return run_suite(
        file,
        lambda group: measure_written(writer, group, controls),
        directory,
        model=name,
        mode="generate",
        max_seq_len=None,
        template=file.header.template,
        device="endpoint",
    )
