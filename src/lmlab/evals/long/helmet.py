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
from lmlab.evals.long.instance import Instance
from lmlab.evals.rows import Row
from lmlab.files import read_json, read_jsonl, read_yaml, write_json

_LISTS = ("input_max_length", "datasets", "generation_max_length", "test_files", "demo_files")
_OTHERS = "use_chat_template max_test_samples shots stop_new_line stop_newline model_name_or_path output_dir tag seed"
_KNOWN = frozenset((*_LISTS, *_OTHERS.split(), "do_sample", "temperature", "top_p", "save_path"))
_MOST_SAMPLES = 100
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
            raise UserError(f"'{path}': {key} has {len(found)} entries for {count} datasets.")
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
    family = _family(found.name)
    rows = _rows(data, found.test_file)
    demos = _rows(data, found.demo_file) if found.demo_file and found.shots else []
    if family == "json_kv":  # whose rows have their examples with them
        rows = [row | {"demos": list(row.get("demos") or [])[: found.shots]} for row in rows]
    made = []
    for number, row in enumerate(_sampled(rows, family, found.samples)):
        where = f"'{found.test_file}', question {number}"
        try:
            draft = _FAMILIES[family](row, _demonstrations(row, demos, found.shots, family))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{where}: it is not of the kind {family} ({type(error).__name__}: {error}).", "Download it again."
            ) from None
        depth = row.get("depth")
        about = {
            "id": f"{found.name}/{found.length}/{number}",
            "task": _JUDGED_AS[family],  # which decides how it is judged
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


def _family(name: str) -> str:
    known = sorted(_FAMILIES, key=len, reverse=True)
    family = next((each for each in known if name.startswith(each)), None)
    if family is None:
        raise UserError(
            f"The data set '{name}' of HELMET is not read.",
            f"Those that are begin with {', '.join(sorted(_FAMILIES))}.",
        )
    return family


def _rows(data: Path, name: str) -> list[dict[str, Any]]:
    path = data.parent / name if name.startswith("data/") else data / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise UserError(f"'{name}' lies outside the folder of HELMET's data.", "Name a file within it.")
    rows = read_json(path) if path.suffix == ".json" else list(read_jsonl(path))
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"'{path}' holds no questions: a list of mappings is expected.", "Download it again.")
    return rows


def _sampled(rows: Sequence[dict[str, Any]], family: str, count: int) -> Iterator[dict[str, Any]]:
    """All rows of so many distinct questions, drawn with HELMET's seed."""
    keys = list(dict.fromkeys(_key(row, family) for row in rows))
    if len(keys) > count:
        keys = random.Random(_SEED).sample(keys, count)
    chosen = set(keys)
    return (row for row in rows if _key(row, family) in chosen)


def _key(row: Mapping[str, Any], family: str) -> str:
    field = {"kilt": "id", "msmarco": "qid"}.get(family, "question")
    return str(row.get(field, row.get("question", row.get("query", ""))))


def _demonstrations(
    row: Mapping[str, Any], demos: Sequence[dict[str, Any]], shots: int, family: str
) -> list[dict[str, Any]]:
    """Examples for a question: drawn by the SHA-256 of its key mod 2^31, other questions than its own."""
    key = _key(row, family)
    others = list({_key(each, family): each for each in demos if _key(each, family) != key}.values())
    seed = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 2**31
    return random.Random(seed).sample(others, min(shots, len(others)))


def _passages(row: Mapping[str, Any]) -> str:
    return "\n\n".join(f"Document (Title: {each.get('title', '')}): {each['text']}" for each in row["ctxs"])


def _json_kv(row: Mapping[str, Any], _: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shown = [f"Key: {key}\nCorresponding value: {value}" for key, value in row["demos"]]
    return {
        "instruction": "Extract the value corresponding to the specified key in the JSON object below.",
        "context": row["context"],
        "demos": "\n\n".join(shown),
        "question": f"Key: {row['question']}",
        "prefix": "Corresponding value:",
        "answer": _answers(row["answer"]),
        "n_items": int(row.get("num_kvs", 0)),
    }


def _kilt(row: Mapping[str, Any], demos: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shown = [f"{_passages(each)}\n\nQuestion: {each['question']}\nAnswer: {_answers(each)[0]}" for each in demos]
    return {
        "instruction": "Use the given documents to write a concise and short answer to the question.",
        "context": "\n\n\n".join([*shown, _passages(row)]),
        "question": f"Question: {row['question']}",
        "prefix": "Answer:",
        "answer": _answers(row),
        "n_items": len(row["ctxs"]),
        "stop": ["\n"],
        "meta": {"gold_context": ""},
    }


def _msmarco(row: Mapping[str, Any], demos: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def listed(each: Mapping[str, Any]) -> str:
        return "\n\n".join(f"[ID: {one['id']}] Document: {one['text']}" for one in each["ctxs"])

    def ranked(each: Mapping[str, Any]) -> str:
        best = sorted(each["ctxs"], key=lambda one: -int(one.get("label", 0)))[:10]
        return " > ".join(str(one["id"]) for one in best)

    shown = [f"{listed(each)}\n\nQuery: {each['query']}\nRanking: {ranked(each)}" for each in demos]
    return {
        "instruction": "Rank the documents by their relevance to the query, and write the best ten as ID1 > ID2 > ID3.",
        "context": "\n\n\n".join([*shown, listed(row)]),
        "question": f"Query: {row['query']}",
        "prefix": "Ranking:",
        "answer": [ranked(row)],
        "n_items": len(row["ctxs"]),
        "meta": {"labels": {str(one["id"]): int(one.get("label", 0)) for one in row["ctxs"]}},
    }


def _ruler(row: Mapping[str, Any], _: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    answers = _answers(row.get("outputs", row.get("answer")))
    asked = row.get("query", row.get("question", ""))
    return {
        "context": row["context"],
        "question": f"Question: {asked}",
        "prefix": "Answer:",
        "answer": [", ".join(answers)],
        "meta": {"values": answers},
    }


def _export(row: Mapping[str, Any], _: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    demos = row.get("demos") or ""
    return {
        "context": row["context"],
        "demos": demos if isinstance(demos, str) else "\n\n".join(map(str, demos)),
        "question": f"Question: {row['question']}",
        "prefix": "Answer:",
        "answer": _answers(row["answer"]),
    }


_FAMILIES: dict[str, Any] = {
    "json_kv": _json_kv,
    "kilt": _kilt,
    "msmarco": _msmarco,
    "ruler": _ruler,
    "narrativeqa": _export,
    "infbench": _export,
    "multi_lexsum": _export,
    "icl": _export,
}
_JUDGED_AS = {
    "json_kv": "json_kv",
    "kilt": "rag",
    "msmarco": "rerank",
    "ruler": "niah_multivalue",
    "narrativeqa": "rag",
    "infbench": "rag",
    "multi_lexsum": "summ",
    "icl": "icl",
}


def _answers(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        value = value.get("answers", value.get("answer"))
    found = value if isinstance(value, list) else [value]
    return [str(each) for each in found if each is not None] or [""]


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


def write_helmet_results(directory: str | Path, found: HelmetSet, rows: Sequence[Row], model: str) -> Path:
    """Write `NAME.json` and `NAME.json.score`, as HELMET names and lays them out; returns the first."""
    directory = Path(directory)
    test = Path(found.test_file).stem or found.name
    name = (
        f"{found.name}_eval_{test}_in{found.length}_size{found.samples}_shots{found.shots}_sampFalsemax{found.budget}"
    )
    name += f"min0t0.0p1.0_chat{found.chat}_42.json"
    metrics = sorted({figure for row in rows for figure in row["figures"]})
    values = {
        metric: [100 * row["figures"][metric] for row in rows if row["figures"].get(metric) is not None]
        for metric in metrics
    }
    averaged = {metric: sum(each) / len(each) for metric, each in values.items() if each}
    path = directory / name
    write_json(
        path,
        {
            "args": {"model_name_or_path": model, "datasets": found.name, "input_max_length": found.length},
            "data": [
                {"id": row["id"], "output": row["output"], "answer": row["answer"], "depth": row["depth"]}
                for row in rows
            ],
            "metrics": values,
            "averaged_metrics": averaged,
        },
    )
    write_json(path.with_name(f"{name}.score"), averaged)
    return path
