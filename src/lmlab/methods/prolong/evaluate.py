"""A model's measurement: instances, the suite, and short tasks beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lmlab.distributed import world
from lmlab.endpoints import Endpoint
from lmlab.errors import UserError
from lmlab.evals import Evaluator, Settings, find_tasks, run_task, task_summary
from lmlab.evals.long import (
    MEASURED,
    Asking,
    EndpointWriter,
    Header,
    HelmetSet,
    InstanceFile,
    LongSettings,
    Mode,
    ModelWriter,
    Reached,
    build_instances,
    header_of,
    helmet_instances,
    measure_written,
    measurer,
    read_header,
    read_helmet_config,
    read_instances,
    read_suite_rows,
    run_suite,
    scores,
    suites,
    write_helmet_results,
    write_instances,
)
from lmlab.evals.long.helmet.families import FAMILIES, family_of
from lmlab.evals.long.helmet.results import SUMMARY, judged_by_helmet, withdraw_judged, write_judged
from lmlab.files import read_mapping, sha256_json, write_json
from lmlab.methods.prolong.short import SHORT
from lmlab.models import weights_fingerprint
from lmlab.progress import console
from lmlab.redaction import redact

INSTANCES, SUITES = "instances.jsonl", SUMMARY
JUDGED = "judged.json"


def instances_for(asking: Asking, settings: LongSettings, path: Path) -> InstanceFile:
    """Build a file of instances and read it back; tasks that a length leaves no room for are named and left out. A file
    that stands there already is taken if it was built by the same settings.

    Raises:
        UserError: it was built by others, and results of its instances stand beside it.
    """
    left_out: list[str] = []
    header = header_of(asking, settings)
    if path.exists() and (path.parent / MEASURED).exists():
        if read_header(path) != header:
            raise UserError(
                f"'{path.parent}' holds results on instances of other settings.", "Name another directory with --out."
            )
        return read_instances(path, asking.tokenizer.fingerprint)
    write_instances(path, header, build_instances(asking, settings, left_out))
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
    short_limit: int | None = 200,  # questions of a task: more narrow its interval, and take time in proportion
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
        how={"controls": controls, "weights": _weights_of(evaluator)},
    )
    if short_tasks:
        results["short"] = measure_short(evaluator, short_tasks, short_limit, directory)
    return results


def _weights_of(evaluator: Evaluator) -> str:
    """What tells a model from the one that stood in the same place before, and its precisions from each other."""
    model = evaluator.model if evaluator.model is not None else getattr(evaluator.scorer, "model", None)
    return "" if model is None else weights_fingerprint(model)


def measure_short(evaluator: Evaluator, names: Sequence[str], limit: int | None, directory: Path) -> dict[str, Any]:
    """Measure short tasks; rows and `short.json` in `directory`. Returns what that holds."""
    found = {}
    for task in find_tasks(names):
        rows = run_task(evaluator, task, Settings(limit, too_long="skip"), directory / f"short-{task.name}.jsonl")
        assert rows is not None
        found[task.name] = task_summary(task, rows)
    if world().is_main:
        write_json(directory / SHORT, found)
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
        how={"controls": controls, "address": redact(str(endpoint.base_url))},
    )


def evaluate_helmet(
    evaluator: Evaluator, config: Path, data: Path, directory: Path, model: str
) -> dict[str, dict[str, Any]]:
    """Measure a model on the data sets of a configuration of HELMET, by what it writes; it does not stop at line ends,
    as the released code does not. Files are written under HELMET's names, and `helmet.json` has those of olmo-eval; run
    again after a judge has spoken, it holds the judge's figures too.

    Raises:
        UserError: the configuration or a file is not HELMET's.
    """
    if evaluator.model is None:
        raise UserError(f"HELMET needs a model that writes, and this one runs by {evaluator.scorer.description}.")
    found, weights = {}, _weights_of(evaluator)
    reached: list[Reached] = []
    for each in read_helmet_config(config):
        asking = Asking(evaluator.tokenizer, each.chat)
        instances = helmet_instances(asking, each, data)
        header = Header(tokenizer=evaluator.tokenizer.fingerprint, template=asking.template)
        fingerprint = sha256_json([instance.model_dump(mode="json") for instance in instances])
        place = directory / f"{each.name}-{each.length}"
        writer = ModelWriter(evaluator.model, asking, stops=False, end_ids=evaluator.end_ids)
        run_suite(
            InstanceFile(header, instances, fingerprint),
            partial(measure_written, writer, controls=False),
            place,
            model=model,
            mode="generate",
            max_seq_len=evaluator.scorer.max_seq_len,
            template=asking.template,
            device=evaluator.scorer.description,
            how={"weights": weights},
        )
        judged = read_judged(place)
        path = write_helmet_results(directory, each, read_suite_rows(place), model, _citation_figures(each, judged))
        found[path.name] = read_mapping(path.with_name(f"{path.name}.score"))
        _tell_judgment(path, each, place, judged)
        figure = reached_by(each, found[path.name], judged)
        if figure.judged and figure.value is None:  # HELMET's own judge may have read our files
            figure = replace(figure, value=judged_by_helmet(path))
        reached.append(figure)
    write_json(directory / SUITES, {"tasks": scores(reached), "suites": suites(reached)})
    return found


def _tell_judgment(path: Path, found: HelmetSet, place: Path, cell: Mapping[str, Any] | None) -> None:
    """Write what a judge said of all answers of a set in HELMET's own layout, where it says what HELMET's judge says: a
    judge that is not asked in words tells no fluency.
    """
    if FAMILIES[family_of(found.name)].judge is None:
        return
    if cell is not None and cell.get("fluency") is not None and cell["graded"] == cell["n"]:
        judged = read_mapping(place / JUDGED)
        write_judged(path, judged["judged"]["fluency"]["judge"], judged["rows"], cell["score"])
    else:  # a judgment that was made anew, in part or by a judge that tells no fluency
        withdraw_judged(path)


def read_judged(place: Path) -> dict[str, Any] | None:
    """What a judge made of a data set of HELMET: `n` and `graded` answers, and means; None where it has not spoken.
    Where it has graded a part alone, which is pointed out, there is no mean: it would not be one of the set.
    """
    judged = read_mapping(place / JUDGED) if (place / JUDGED).exists() else {}
    cell = next((cell for each in judged.get("tasks", {}).values() for cell in each.values()), None)
    if cell is None or cell["graded"] == cell["n"]:
        return cell
    console.print(
        f"{place.name}: {cell['graded']:,} of {cell['n']:,} answers have a grade, so that no judged figure is told."
        " Judge it again to ask for the others.",
        markup=False,
    )
    return {"n": cell["n"], "graded": cell["graded"]}


def _citation_figures(found: HelmetSet, judged: Mapping[str, Any] | None) -> dict[str, float]:
    """Recall and precision of citations, under HELMET's names, where a judge has told them."""
    if judged is None or FAMILIES[family_of(found.name)].category != "cite" or "recall" not in judged:
        return {}
    return {"citation_rec": judged["recall"], "citation_prec": judged["precision"]}


def reached_by(found: HelmetSet, figures: Mapping[str, float], judged: Mapping[str, Any] | None) -> Reached:
    """The figure that stands for a data set of HELMET, 0 to 100: a judge's where it needs one."""
    family = FAMILIES[family_of(found.name)]
    if family.judge is None:
        return Reached(found.name, found.length, figures.get(family.metric), False)
    value = (judged or {}).get(family.judge)
    return Reached(found.name, found.length, None if value is None else 100 * value, True)
