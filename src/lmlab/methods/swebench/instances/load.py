"""Instances from files and folders: JSON, JSON lines, Parquet, folders of `datasets`, task repositories, the hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmlab.errors import UserError, missing_extra, reads
from lmlab.files import read_json, read_jsonl, require_mapping, write_json, write_jsonl
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.instances.task_repository import is_task_repository, read_task_repository
from lmlab.words import counted

if TYPE_CHECKING:
    from lmlab.methods.swebench.config import InstancesConfig

ALIASES = {
    "full": "SWE-bench/SWE-bench",
    "lite": "SWE-bench/SWE-bench_Lite",
    "verified": "SWE-bench/SWE-bench_Verified",
    "multilingual": "SWE-bench/SWE-bench_Multilingual",
    "multimodal": "SWE-bench/SWE-bench_Multimodal",
}
_SHOWN = 20  # ids that a message lists


def load_instances(source: str | Path, split: str | None = None, ids: Sequence[str] | None = None) -> list[Instance]:
    """Load instances.

    Arguments:
        source: a file (`.json`, `.jsonl`, `.parquet`, also compressed JSON lines), a folder with SPLIT.parquet, one
            that `datasets` has saved, a task repository (sweb.yaml), an id of the Hugging Face hub, or an alias (full,
            lite, verified, multilingual, multimodal).
        split: by default `test` where there are several.
        ids: only these, in the order of the source.

    Raises:
        UserError: nothing can be read there, an id stands twice, or one of `ids` is unknown.
    """
    rows = _rows(str(source), split)
    instances = [Instance.from_row(row, where) for where, row in rows]
    if not instances:
        raise UserError(f"'{source}' has no instances{'' if split is None else f' of the split {split!r}'}.")
    known = Counter(each.instance_id for each in instances)
    if twice := sorted(name for name, count in known.items() if count > 1):
        raise UserError(f"'{source}' has instances twice: {shown(twice)}.")
    if ids is None:
        return instances
    if unknown := [each for each in ids if each not in known]:
        raise UserError(f"'{source}' has no instances {shown(unknown)}.", "Check the ids and the split.")
    wanted = set(ids)
    return [each for each in instances if each.instance_id in wanted]


def load_chosen(config: InstancesConfig) -> list[Instance]:
    """The instances that settings choose: by id, and by when they were created.

    Raises:
        UserError: as `load_instances`; or dates are asked for and an instance has none, or none is of that time.
    """
    found = load_instances(config.instances, config.split, config.ids)
    since, before = config.created_since, config.created_before
    if since is None and before is None:
        return found
    for each in (since, before):
        if each is not None and instant(each) is None:
            raise UserError(f"'{each}' is no date.", "Write it as 2024-01-01.")
    dates = {each.instance_id: instant(each.created_at) for each in found}
    if undated := [name for name, date in dates.items() if date is None]:
        raise UserError(f"Instances have no date: {shown(undated)}.", "Leave out --created-since and --created-before.")
    first, end = instant(since or "0001-01-02"), instant(before or "9999-12-30")
    kept = [each for each in found if first <= dates[each.instance_id] < end]  # type: ignore[operator]
    if not kept:
        raise UserError(f"None of {counted(len(found), 'instances')} is of that time.")
    return kept


def instant(text: str) -> datetime | None:
    """A time with its zone; without one it is UTC."""
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def shown(ids: Iterable[str]) -> str:
    """Ids for a message, not more than a screen holds."""
    listed = list(ids)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def write_instances(path: Path, instances: Iterable[Instance]) -> int:
    """Write JSON lines, or JSON or Parquet by the file's ending; how many.

    Raises:
        UserError: Parquet needs a package that is not installed.
    """
    rows = [each.to_row("json" if path.suffix == ".parquet" else "list") for each in instances]
    if path.suffix == ".json":
        write_json(path, rows)
    elif path.suffix == ".parquet":
        import json

        from lmlab.files import atomic_file

        pyarrow = _pyarrow("Writing Parquet")
        flat = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows]
        with atomic_file(path) as file:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(flat), file)
    else:
        write_jsonl(path, rows)
    return len(rows)


def _rows(source: str, split: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    path = Path(source)
    if path.is_dir():
        yield from _folder(path, split)
    elif path.is_file():
        yield from _of_split(_file(path), split)
    elif source.lower() in ALIASES or (source.count("/") == 1 and not path.suffix):
        yield from _hub(ALIASES.get(source.lower(), source), split or "test")
    else:
        raise UserError(
            f"No instances at '{source}': no such file or folder.", f"Known names: {', '.join(sorted(ALIASES))}."
        )


def _of_split(rows: Iterable[tuple[str, dict[str, Any]]], split: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    return (each for each in rows if split is None or each[1].get("split", split) == split)


@reads("a file of instances")
def _file(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    names = path.name.removesuffix(".gz").removesuffix(".zst").removesuffix(".xz")
    if names.endswith(".jsonl"):
        for number, row in enumerate(read_jsonl(path), 1):
            yield f"'{path}', line {number}", row
    elif names.endswith(".json"):
        found = read_json(path)
        listed = found.items() if isinstance(found, dict) else enumerate(found, 1) if isinstance(found, list) else None
        if listed is None:
            raise UserError(f"'{path}' is neither a list of instances nor a mapping of ids to them.")
        for key, row in listed:
            where = f"'{path}', entry {key}"
            yield where, ({"instance_id": key} if isinstance(found, dict) else {}) | require_mapping(row, where)
    elif names.endswith(".parquet"):
        table = _pyarrow("Reading Parquet").parquet.read_table(path)
        yield from ((f"'{path}', row {number}", row) for number, row in enumerate(table.to_pylist(), 1))
    else:
        raise UserError(f"'{path}': instances are read from .jsonl, .json and .parquet files.")


def _folder(path: Path, split: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    if is_task_repository(path):
        yield from _of_split(read_task_repository(path), split)
        return
    name = split or "test"
    for place in (path, path / "data"):
        single = [place / f"{name}.parquet"] if (place / f"{name}.parquet").is_file() else []
        parts = single or sorted(place.glob(f"{name}-*.parquet"))
        if parts:
            for each in parts:
                yield from _file(each)
            return
    for place in (path / name, path):
        if (place / "dataset_info.json").is_file():
            yield from _saved(place)
            return
    raise UserError(
        f"'{path}' holds no instances: neither {name}.parquet, nor a saved dataset, nor a task repository (sweb.yaml)."
    )


@reads("a saved dataset")
def _saved(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    pyarrow = _pyarrow("Reading a saved dataset")
    for part in sorted(path.glob("*.arrow")):
        with pyarrow.memory_map(str(part)) as source:
            table = pyarrow.ipc.open_stream(source).read_all()
        yield from ((f"'{part}', row {number}", row) for number, row in enumerate(table.to_pylist(), 1))


def _hub(name: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise missing_extra("datasets", "Loading instances from the hub") from None
    try:
        found = load_dataset(name, split=split)
    except Exception as error:
        raise UserError(
            f"'{name}' cannot be loaded from the hub ({type(error).__name__}: {str(error).splitlines()[0][:200]}).",
            "Download the dataset and name its file or folder.",
        ) from None
    yield from ((f"{name}, row {number}", dict(row)) for number, row in enumerate(found, 1))


def _pyarrow(purpose: str) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("pyarrow", purpose) from None
    return pyarrow
