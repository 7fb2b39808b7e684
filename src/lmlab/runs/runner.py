"""Running a recipe in a run directory: finished stages are skipped, unfinished ones resume, changed ones are never
overwritten unasked.

RUN/recipe.yaml      the recipe with every default spelled out
RUN/manifest.json    versions, hardware, seed, stages
RUN/STAGE/           what a stage wrote, and stage.json: its configuration, fingerprint, state, results
RUN/results.json     the results of all stages
RUN/superseded/      what --redo replaced
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.table import Table

from lmlab.config import flatten, influences
from lmlab.distributed import from_main, joined
from lmlab.errors import EXIT_FAILURE, Interrupted, UserError, doing
from lmlab.files import content_digests, remove_leftovers, sha256_json, write_json, write_text
from lmlab.hardware import environment, ways
from lmlab.progress import console, duration
from lmlab.redaction import redact, redact_all
from lmlab.runs.recipe import Recipe, RecipeStage
from lmlab.runs.record import NAME as RECORD
from lmlab.runs.record import Results, StageRecord
from lmlab.runs.stage import StageContext
from lmlab.terminal import markup

_NAMED_FILES, _SHOWN_FILES = 5000, 3  # of a configuration that are watched for changes, and of changes that are told


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its fingerprint and what an earlier run left of it: `new`, `unfinished`, `done`, or `changed` with
    what has changed.

    Attributes:
        files: what it reads from outside the run: path -> a digest of its size and content.
        content: what the fingerprint is of.
        note: how it goes on with other settings, if it does.
        promised: what the stages before it promise, by its inputs.
    """

    entry: RecipeStage
    directory: Path
    fingerprint: str
    state: str
    changes: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    content: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    promised: Mapping[str, Any] = field(default_factory=dict)


def run_recipe(recipe: Recipe, directory: str | Path, redo: bool = False) -> dict[str, Results]:
    """Run all stages that are not done; return each stage's results by name.

    Under `torchrun` every process calls it: the main one leads, the others join in the stages that are distributed.

    Arguments:
        redo: run changed stages again; what they wrote before is moved to `superseded/`.

    Raises:
        UserError: the directory belongs to a run with other settings, or is in use.
        Interrupted: stopped on request.
    """
    directory = Path(directory)
    with joined() as world:
        return _lead(recipe, directory, redo) if world.is_main else _follow(recipe, directory)


def _lead(recipe: Recipe, directory: Path, redo: bool) -> dict[str, Results]:
    """What the main process does: everything."""
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / ".lock")
    with _telling_the_others():
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"Another process is running in '{directory}'.", "Wait for it, or choose another directory with --out."
            ) from None
    with lock:
        with _telling_the_others():
            planned = _prepare(recipe, directory, redo)
        from_main([each.state for each in planned])
        results: dict[str, Results] = {}
        for number, each in enumerate(planned, 1):
            results[each.entry.name] = _run_stage(
                each, recipe, directory, f"[{number}/{len(planned)}]", planned[: number - 1]
            )
        found = {name: each.to_json() for name, each in results.items()}
        write_json(directory / "results.json", redact_all(found))
        return results


def _follow(recipe: Recipe, directory: Path) -> dict[str, Results]:
    """What the other processes do: their part of the stages that all run together."""
    states = _ask_main()
    for entry, state in zip(recipe.stages, states, strict=True):
        if state == "done":
            continue
        if entry.stage.distributed:
            with ways.using(_ask_main()):
                entry.stage.run(entry.config, _context(entry, recipe, directory, {}))
        _ask_main()
    return {}


def _prepare(recipe: Recipe, directory: Path, redo: bool) -> list[PlannedStage]:
    planned = plan_stages(recipe, directory, redo)
    changed = [each for each in planned if each.state == "changed"]
    if changed and not redo:
        raise UserError(
            _explain_changes(changed, directory),
            "Add --redo to run these stages again, or --out DIR to start another run.",
        )
    for each in changed:
        _supersede(each, directory)
    write_text(directory / "recipe.yaml", recipe.to_yaml())
    if not (directory / "manifest.json").exists() or any(each.state != "done" for each in planned):
        _write_manifest(recipe, planned, directory)
    return planned


@contextmanager
def _telling_the_others() -> Iterator[None]:
    """If this fails, the processes that wait for news end too."""
    try:
        yield
    except BaseException:
        from_main(None)
        raise


def _ask_main() -> Any:
    news = from_main(None)
    if news is None:
        raise SystemExit(EXIT_FAILURE)  # the main process says why
    return news


def _context(entry: RecipeStage, recipe: Recipe, run: Path, stages: Mapping[str, Any]) -> StageContext:
    inputs = {key: run / value if isinstance(value, str) else value for key, value in entry.inputs.items()}
    return StageContext(run / entry.name, inputs, recipe.seed, run, stages)


def plan_stages(
    recipe: Recipe, directory: str | Path, redo: bool = False, absent: list[UserError] | None = None
) -> list[PlannedStage]:
    """Compare every stage with what the directory holds. Nothing is written.

    Arguments:
        redo: a stage that cannot go on with its new settings counts as changed, in place of an error.
        absent: receives what a stage misses of its sources, in place of an error.
    """
    directory = Path(directory)
    fingerprints: dict[str, str] = {}
    promises: dict[Any, Any] = {}
    planned: list[PlannedStage] = []
    for entry in recipe.stages:
        outside = {key: _files_of(value) for key, value in entry.inputs.items() if isinstance(value, Path)}
        inputs = {
            key: fingerprints[value] if isinstance(value, str) else sha256_json(outside[key])
            for key, value in entry.inputs.items()
        }
        promised = {key: promises[value] for key, value in entry.inputs.items() if value in promises}
        promises[entry.name] = _unless(absent, entry.stage.promises, entry.config, promised)
        sources = _unless(absent, entry.stage.depends_on, entry.config, promised)
        depends_on = redact_all(sources)  # a new key is no new source
        content: dict[str, Any] = {
            "kind": entry.kind,
            "version": entry.stage.version,
            "config": redact_all(influences(entry.config)),
            "inputs": inputs,
            "seed": recipe.seed,
            "depends_on": sha256_json(depends_on),
        }
        if entry.stage.reads_all_stages:
            content["stages"] = dict(fingerprints)
        fingerprint = sha256_json(content)
        fingerprints[entry.name] = fingerprint
        path = directory / entry.name
        record = StageRecord.read(path) if (path / RECORD).exists() else None
        files = _digests([*outside.values(), depends_on])
        changes: tuple[str, ...] = ()
        note = _going_on(entry, record, content, path, redo)
        if record is None:
            state = "new"
        elif record.fingerprint == fingerprint:
            state = record.state
        elif entry.stage.reads_all_stages or (record.state != "done" and _wrote_nothing(path)):
            state = "new"  # what failed at once, by a setting that is wrong, keeps nobody from mending it
        elif note:
            state = "unfinished"
        else:
            state = "changed"
            changes = (*_differences(record.content, content), *_changed_files(record.files, files))
        planned.append(PlannedStage(entry, path, fingerprint, state, changes, files, content, note, promised))
    return planned


def _unless(absent: list[UserError] | None, ask: Callable[..., Any], *arguments: Any) -> Any:
    """What a stage answers; None where it misses something, which is noted if that is asked for."""
    try:
        return ask(*arguments)
    except UserError as error:
        if absent is None:
            raise
        absent.append(error)
        return None


def _wrote_nothing(path: Path) -> bool:
    """Whether a stage has left no more than its record."""
    return all(each.name == RECORD or each.name.startswith(".") for each in path.iterdir())


def _going_on(
    entry: RecipeStage, record: StageRecord | None, content: Mapping[str, Any], path: Path, redo: bool
) -> str:
    """How a stage goes on whose configuration alone has changed; nothing if it cannot, or need not."""
    if record is None:
        return ""
    before = record.content
    if before.get("config") == content["config"] or {**before, "config": None} != {**content, "config": None}:
        return ""
    try:
        return entry.stage.continues(entry.config, before["config"], record.state == "done", path) or ""
    except UserError as error:
        if redo:
            return ""
        raise UserError(error.message, f"{error.remedy or ''} Or add --redo to run the stage again.".strip()) from None


def stored_stages(recipe: Recipe, directory: str | Path) -> list[PlannedStage]:
    """The stages of a run as their records have them: nothing that they read from is looked at.

    Raises:
        UserError: one of them has not finished.
    """
    directory = Path(directory)
    records = {each.name: StageRecord.finished_in(directory / each.name) for each in recipe.stages}
    return [PlannedStage(each, directory / each.name, records[each.name].fingerprint, "done") for each in recipe.stages]


def _run_stage(planned: PlannedStage, recipe: Recipe, run: Path, number: str, before: list[PlannedStage]) -> Results:
    entry, path = planned.entry, planned.directory
    title = f"{number} {entry.name}" + (f" ({entry.kind})" if entry.kind != entry.name else "")
    if planned.state == "done":
        results: Results = StageRecord.read(path).read_results(entry.stage.results_type)
        console.print(markup("[dim]{}: done before. {}", title, entry.stage.summary(results)))
        return results
    console.print(markup("[bold]{}[/bold]" + " [dim]goes on[/dim]" * (planned.state == "unfinished"), title))
    if planned.note:
        console.print(markup("  {}", planned.note))
    path.mkdir(parents=True, exist_ok=True)
    earlier = StageRecord.read(path) if planned.state == "unfinished" else None
    spent = earlier.spent(path) if earlier else 0.0
    remove_leftovers(path)
    answers = (earlier.ways if earlier else {}) or ways.in_force()
    record = StageRecord(
        name=entry.name,
        kind=entry.kind,
        fingerprint=planned.fingerprint,
        content=dict(planned.content),
        files=dict(planned.files),
        state="unfinished",
        ways=answers,
        started=earlier.started if earlier else _now(),
        seconds=round(spent, 2) if earlier else None,
    )
    record.write(path)
    context = _context(entry, recipe, run, {each.entry.name: each for each in before})
    start = time.monotonic()
    try:
        with doing(f"the stage '{entry.name}' ({entry.kind})"), ways.using(answers):
            if entry.stage.distributed:
                from_main(answers)  # which lets the others begin, and has them compute by the same ways
                results = entry.stage.run(entry.config, context)
            else:
                with _telling_the_others():
                    results = entry.stage.run(entry.config, context)
        from_main("done")
    except BaseException as stopped:
        record.model_copy(update={"seconds": round(spent + time.monotonic() - start, 2)}).write(path)
        if not isinstance(stopped, KeyboardInterrupt):
            raise
        raise Interrupted(
            f"Interrupted in the stage '{entry.name}'; the stages before it are kept.",
            "Run the same command again to go on.",
        ) from None
    seconds = spent + time.monotonic() - start
    told = redact_all(results.to_json())
    done = {"state": "done", "finished": _now(), "seconds": round(seconds, 2), "results": told}
    record.model_copy(update=done).write(path)
    attempts = duration(seconds) + (f", {duration(seconds - spent)} of it now" if spent else "")
    console.print(markup("  [green]done[/green] in {}. {}", attempts, entry.stage.summary(results)))
    return results


def print_plan(recipe: Recipe, directory: str | Path) -> None:
    """Print what a run would do.

    Raises:
        UserError: something that it reads from is not there; the plan is printed before, as far as it is known.
    """
    absent = list(recipe.absent)
    directory = Path(directory)
    table = Table(title=f"Plan of '{recipe.name}' in {directory}", title_justify="left", show_lines=True)
    for column in ("stage", "kind", "state", "what"):
        table.add_column(column, overflow="fold")
    for each in plan_stages(recipe, directory, absent=absent):
        rows = _unless(absent, each.entry.stage.plan, each.entry.config, each.promised) or {}
        text = "\n".join(f"{label}: {value}" for label, value in rows.items())
        if each.changes:
            text += "\nchanged: " + "; ".join(each.changes)
        text += f"\n{each.note}" if each.note else ""
        table.add_row(each.entry.name, each.entry.kind, each.state, text)
    console.print(table)
    missing = list({each.message: each for each in absent}.values())
    if len(missing) == 1:
        raise missing[0]
    if missing:
        told = "\n".join(f"  - {each.message}" for each in missing)
        raise UserError(f"{len(missing)} things are missing for this run:\n{told}")


def _write_manifest(recipe: Recipe, planned: list[PlannedStage], directory: Path) -> None:
    stages = {each.entry.name: {"kind": each.entry.kind, "fingerprint": each.fingerprint} for each in planned}
    begun = [StageRecord.read(each.directory).started for each in planned if each.state in ("done", "unfinished")]
    write_json(
        directory / "manifest.json",
        {
            "name": recipe.name,
            "description": redact(recipe.description),
            "seed": recipe.seed,
            "created": min(begun, default=_now()),  # of a run that goes on, when what it keeps began
            "environment": environment(),
            "stages": stages,
        },
    )


def _supersede(planned: PlannedStage, directory: Path) -> None:
    folder = directory / "superseded"
    folder.mkdir(exist_ok=True)
    # beyond the greatest, not their count: some may have been removed to free the disk
    name = re.compile(rf"{re.escape(planned.entry.name)}-(\d+)")
    taken = [int(found[1]) for each in folder.iterdir() if (found := name.fullmatch(each.name))]
    shutil.move(planned.directory, folder / f"{planned.entry.name}-{max(taken, default=0) + 1}")


def _explain_changes(changed: list[PlannedStage], directory: Path) -> str:
    first = changed[0]
    what = "; ".join(first.changes) or "what it reads has changed"
    others = (
        f" The stages after it that depend on it: {', '.join(each.entry.name for each in changed[1:])}."
        if changed[1:]
        else ""
    )
    return f"'{directory}' holds results of other settings. Stage '{first.entry.name}': {what}.{others}"


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    before, after = flatten(old["config"]), flatten(new["config"])
    lines = [
        f"{key}: {before.get(key, 'unset')} -> {after.get(key, 'unset')}"
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    ]
    if old["seed"] != new["seed"]:
        lines.append(f"seed: {old['seed']} -> {new['seed']}")
    if old["version"] != new["version"]:
        lines.append("this version of lmlab computes it differently")
    return lines


def _files_of(path: Path) -> list[tuple[str, int, str]]:
    """The files at or below a path, each with its size and a digest of its content."""
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    found = zip(files, content_digests(files), strict=True)
    return [(str(each), each.stat().st_size, digest) for each, digest in found]


def _digests(value: Any) -> dict[str, str]:
    """The files that a JSON value describes by rows (path, size, ...), each with a digest of its row; the first
    thousands of them.
    """
    found: dict[str, str] = {}
    waiting = [value]
    while waiting and len(found) < _NAMED_FILES:
        each = waiting.pop()
        if isinstance(each, Mapping):
            waiting += each.values()
        elif isinstance(each, list | tuple):
            if len(each) > 1 and isinstance(each[0], str) and isinstance(each[1], int):
                found[each[0]] = sha256_json(each)[:16]
            else:
                waiting += each
    return found


def _changed_files(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """What became of the files that are read; the first ones by name."""
    lines = [f"'{name}' has changed" for name in old.keys() & new.keys() if old[name] != new[name]]
    lines += [f"'{name}' is not read any more" for name in old.keys() - new.keys()]
    lines += [f"'{name}' is new" for name in new.keys() - old.keys()]
    lines.sort()
    more = len(lines) - _SHOWN_FILES
    return lines if more <= 0 else [*lines[:_SHOWN_FILES], f"{more:,} more files differ"]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
