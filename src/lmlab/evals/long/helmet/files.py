"""HELMET's own data (Yen et al. 2024): its configurations and files are read as they are, and results are written under
the names that its collector expects.

Its wording of prompts is not shipped; ours stands in its place. `context` is cut at its end where a prompt is too long.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmlab.config import validate
from lmlab.errors import UserError, did_you_mean
from lmlab.evals.long.asking import Asking
from lmlab.evals.long.helmet.families import FAMILIES, family_of
from lmlab.evals.long.instance import Instance
from lmlab.evals.rows import Row
from lmlab.files import read_json, read_jsonl, read_yaml, write_json
from lmlab.words import counted

_LISTS = ("input_max_length", "datasets", "generation_max_length", "test_files", "demo_files")
_OTHERS = "use_chat_template max_test_samples shots stop_new_line stop_newline model_name_or_path output_dir tag seed"
_KNOWN = frozenset((*_LISTS, *_OTHERS.split(), "do_sample", "temperature", "top_p", "save_path"))
_METRICS = {
    "substring_match": "substring_exact_match",
    "ndcg10": "NDCG@10",
    "rougeL": "rougeL_f1",
    "rec_top5": "qampari_rec_top5",
}
"""Figures that HELMET's collector looks for under other names than ours."""
_COUNTS = frozenset({"citations"})
_OF_FAMILY = {
    "ruler": {"recall": "ruler_recall"},
    "alce_qampari": {"recall": "qampari_rec", "precision": "qampari_prec"},
}
_MOST_SAMPLES = 100  # as HELMET's own configurations ask for
_SEED = 42  # HELMET's
_CHARACTERS = 6  # that a token has at most, on average, in what is cut first


@dataclass(frozen=True)
class HelmetSet:
    """One data set of a configuration.

    Attributes:
        name: such as `json_kv` or `kilt_nq`.
        length: most tokens of the prompt with its answer.
        budget: most tokens of the answer.
        shots: demonstrations in each prompt.
    """

    name: str
    length: int
    budget: int
    test_file: str
    demo_file: str
    shots: int
    samples: int
    chat: bool


def read_helmet_config(path: str | Path) -> list[HelmetSet]:
    """The data sets of a configuration: parallel lists with commas between their entries, and scalars for all.

    Raises:
        UserError: a key is missing or unknown, or the lists are not equally long.
    """
    path = Path(path)
    given = read_yaml(path)
    for key in given:
        if key not in _KNOWN:
            raise UserError(f"'{path}': unknown key '{key}'. {did_you_mean(key, _KNOWN)}")
    lists = {key: [each.strip() for each in str(given.get(key, "")).split(",")] for key in _LISTS}
    count = len(lists["datasets"])
    for key, found in lists.items():
        if len(found) == 1:
            lists[key] = found * count
        elif len(found) != count:
            raise UserError(f"'{path}': {key} has {counted(len(found), 'entries')} for {counted(count, 'datasets')}.")
    for key in ("input_max_length", "generation_max_length"):
        for value in lists[key]:
            if not value.isdigit() or int(value) == 0:
                raise UserError(f"'{path}': {key} holds {value!r}, which is no number of tokens.")
    if not all(lists["datasets"]):
        raise UserError(f"'{path}' names no datasets.")
    shots = _whole(path, given, "shots", 2, 0)
    samples = _whole(path, given, "max_test_samples", _MOST_SAMPLES, 1)
    chat = given.get("use_chat_template", False)
    if not isinstance(chat, bool):
        raise UserError(f"'{path}': use_chat_template holds {chat!r}; write true or false.")
    return [
        HelmetSet(
            name,
            int(lists["input_max_length"][number]),
            int(lists["generation_max_length"][number]),
            lists["test_files"][number],
            lists["demo_files"][number],
            shots,
            samples,
            chat,
        )
        for number, name in enumerate(lists["datasets"])
    ]


def _whole(path: Path, given: Mapping[str, Any], key: str, default: int, least: int) -> int:
    value = given.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"'{path}': {key} holds {value!r}; write a whole number of {least} or more.")
    return value


def helmet_instances(asking: Asking, found: HelmetSet, data: str | Path) -> list[Instance]:
    """The instances of a data set, from the folder that holds HELMET's `data`.

    `max_test_samples` draws distinct questions, which then come at every depth of their gold passage.

    Raises:
        UserError: the files are missing or of a kind that is not read; the message names them.
    """
    data = Path(data)
    family = family_of(found.name)
    kind = FAMILIES[family]
    rows = _rows(data, found.test_file)
    demos = _rows(data, found.demo_file) if found.demo_file and found.shots else []
    if family == "json_kv":  # whose rows have their examples with them
        rows = [row | {"demos": list(row.get("demos") or [])[: found.shots]} for row in rows]
    made = []
    for number, row in enumerate(_sampled(rows, kind.key, found.samples)):
        where = f"'{found.test_file}', question {number}"
        try:
            draft = kind.draft(row, _demonstrations(row, demos, found.shots, kind.key), found.name)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{where}: it is not of the kind {family} ({type(error).__name__}: {error}).", "Download it again."
            ) from None
        depth = row.get("depth")
        about = {
            "id": f"{found.name}/{found.length}/{number}",
            "task": kind.judged_as,  # which decides how it is judged
            "variant": "uuid" if family == "json_kv" else "default",
            "length": found.length,
            "context_index": number,
            "question_index": 0,
            "budget": found.budget,
            "depth": float(depth) if isinstance(depth, int | float) and 0 <= depth <= 1 else None,
        }
        instance = validate(Instance, about | draft, where)
        made.append(_cut(asking, instance, found.length - found.budget))
    return made


def _rows(data: Path, name: str) -> list[dict[str, Any]]:
    path = data.parent / name if name.startswith(("data/", "prompts/")) else data / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise UserError(f"'{name}' lies outside the folder of HELMET's data.", "Name a file within it.")
    rows = read_json(path) if path.suffix == ".json" else list(read_jsonl(path))
    if name.startswith("prompts/") and isinstance(rows, dict):  # those of ALCE hold examples beside their wording
        rows = rows.get("demos")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"'{path}' holds no questions: a list of mappings is expected.", "Download it again.")
    return rows


def _sampled(rows: Sequence[dict[str, Any]], field: str, count: int) -> Iterator[dict[str, Any]]:
    """All rows of so many distinct questions, drawn with HELMET's seed."""
    keys = list(dict.fromkeys(_key(row, field) for row in rows))
    if len(keys) > count:
        keys = random.Random(_SEED).sample(keys, count)
    chosen = set(keys)
    return (row for row in rows if _key(row, field) in chosen)


def _key(row: Mapping[str, Any], field: str) -> str:
    return str(row.get(field, row.get("question", row.get("query", ""))))


def _demonstrations(
    row: Mapping[str, Any], demos: Sequence[dict[str, Any]], shots: int, field: str
) -> list[dict[str, Any]]:
    """Examples for a question: drawn by the SHA-256 of its key mod 2^31, other questions than its own."""
    key = _key(row, field)
    others = list({_key(each, field): each for each in demos if _key(each, field) != key}.values())
    seed = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 2**31  # as HELMET draws them
    return random.Random(seed).sample(others, min(shots, len(others)))


def _cut(asking: Asking, instance: Instance, room: int) -> Instance:
    """The instance with its context cut at the end so that its prompt has at most `room` tokens."""
    tokens = len(asking.ids(instance))
    while tokens > room and instance.context:
        ids = asking.tokenizer.encode(instance.context, "as_text")
        kept = asking.tokenizer.decode(ids[: max(0, len(ids) - (tokens - room))])
        kept = kept if len(kept) < len(instance.context) else instance.context[:-_CHARACTERS]
        instance = instance.model_copy(update={"context": kept})
        tokens = len(asking.ids(instance))
    if tokens > room:
        raise UserError(f"'{instance.id}' has {tokens} tokens without its context; there is room for {room}.")
    return instance.model_copy(update={"prompt_tokens": tokens})


def write_helmet_results(
    directory: str | Path,
    found: HelmetSet,
    rows: Sequence[Row],
    model: str,
    more: Mapping[str, float] | None = None,
) -> Path:
    """Write `NAME.json` and `NAME.json.score`, as HELMET names and lays them out, figures by its names from 0 to 100
    and counts as they are; returns the first.

    Arguments:
        more: figures that stand for the whole set, 0 to 1.
    """
    directory = Path(directory)
    test = Path(found.test_file).stem or found.name
    name = (
        f"{found.name}_eval_{test}_in{found.length}_size{found.samples}_shots{found.shots}_sampFalsemax{found.budget}"
    )
    name += f"min0t0.0p1.0_chat{found.chat}_42.json"
    names = _METRICS | _OF_FAMILY.get(family_of(found.name), {})
    metrics = sorted({figure for row in rows for figure in row["figures"]})
    values = {
        names.get(metric, metric): [
            (1 if metric in _COUNTS else 100) * row["figures"][metric] for row in rows if metric in row["figures"]
        ]
        for metric in metrics
    }
    averaged = {metric: sum(each) / len(each) for metric, each in values.items()}
    averaged |= {metric: 100 * value for metric, value in (more or {}).items()}
    path = directory / name
    write_json(
        path,
        {
            "args": {"model_name_or_path": model, "datasets": found.name, "input_max_length": found.length},
            "data": [
                {
                    "id": row["id"],
                    "question": str(row.get("question", "")).removeprefix("Question: "),
                    "output": row["output"],
                    "answer": row.get("answers") or [row["answer"]],  # a list, from which HELMET's judges read
                    "depth": row["depth"],
                }
                | {names.get(metric, metric): value for metric, value in row["figures"].items()}
                for row in rows
            ],
            "metrics": values,
            "averaged_metrics": averaged,
        },
    )
    write_json(path.with_name(f"{name}.score"), averaged)
    return path
