"""The families of HELMET's data sets: what a row becomes, and how its answers are judged."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmlab.errors import UserError

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Family:
    """Data sets whose names begin alike.

    Attributes:
        draft: fields of an instance, of a row with its demonstrations; the last argument is the name of the set.
        judged_as: the task by which its answers are judged.
        key: field that tells its questions apart.
        category: of HELMET.
        metric: the figure that stands for a set, by HELMET's name.
        judge: what that figure is where a judge has read the answers; None where none is needed.
    """

    draft: Callable[[Mapping[str, Any], Rows, str], dict[str, Any]]
    judged_as: str
    category: str
    metric: str
    key: str = "question"
    judge: str | None = None


def family_of(name: str) -> str:
    """The family of a data set: the longest one that its name begins with.

    Raises:
        UserError: it is not read.
    """
    known = sorted(FAMILIES, key=len, reverse=True)
    family = next((each for each in known if name.startswith(each)), None)
    if family is None:
        raise UserError(
            f"The data set '{name}' of HELMET is not read.",
            f"Those that are begin with {', '.join(sorted(FAMILIES))}.",
        )
    return family


def _passages(row: Mapping[str, Any]) -> str:
    return "\n\n".join(f"Document (Title: {each.get('title', '')}): {each['text']}" for each in row["ctxs"])


def _json_kv(row: Mapping[str, Any], _: Rows, __: str) -> dict[str, Any]:
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


def _kilt(row: Mapping[str, Any], demos: Rows, _: str) -> dict[str, Any]:
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


def _msmarco(row: Mapping[str, Any], demos: Rows, _: str) -> dict[str, Any]:
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


def _ruler(row: Mapping[str, Any], _: Rows, __: str) -> dict[str, Any]:
    answers = _answers(row.get("outputs", row.get("answer")))
    asked = row.get("query", row.get("question", ""))
    return {
        "context": row["context"],
        "question": f"Question: {asked}",
        "prefix": "Answer:",
        "answer": [", ".join(answers)],
        "meta": {"values": answers},
    }


def _export(row: Mapping[str, Any], _: Rows, __: str) -> dict[str, Any]:
    demos = row.get("demos") or ""
    return {
        "context": row["context"],
        "demos": demos if isinstance(demos, str) else "\n\n".join(map(str, demos)),
        "question": f"Question: {row['question']}",
        "prefix": "Answer:",
        "answer": _answers(row["answer"]),
    }


def _alce(row: Mapping[str, Any], demos: Rows, name: str) -> dict[str, Any]:
    """Questions of ASQA and QAMPARI over retrieved documents, of which the last number of the name says how many."""
    found = re.search(r"_(\d+)$", name)
    cites = "_nocite" not in name
    shown = [f"{_numbered(each, None)}\n\nQuestion: {each['question']}\nAnswer: {_told(each)}" for each in demos]
    lists = name.startswith("alce_qampari")
    how = "Give a list of all answers, separated by commas," if lists else "Answer the question in a few sentences"
    more = ", and cite the documents that say so after each as [1][2]." if cites else "."
    meta: dict[str, Any]
    if lists:
        meta = {"answers": [_answers(each) for each in row["answers"]]}
    else:
        meta = {"answers": [_answers(each["short_answers"]) for each in row["qa_pairs"]]}
    if not meta["answers"]:
        raise ValueError("no answers")
    count = int(found[1]) if found else None
    meta["documents"] = [f"{each.get('title', '')}: {each['text']}" for each in row["docs"][:count]]
    return {
        "instruction": f"{how} by the documents{more}",
        "context": "\n\n\n".join([*shown, _numbered(row, count)]),
        "question": f"Question: {row['question']}",
        "prefix": "Answer:",
        "answer": [_told(row)],
        "n_items": len(row["docs"]),
        "meta": meta,
    }


def _numbered(row: Mapping[str, Any], count: int | None) -> str:
    documents = row["docs"] if count is None else row["docs"][:count]
    return "\n\n".join(
        f"Document [{number}] (Title: {each.get('title', '')}): {each['text']}"
        for number, each in enumerate(documents, 1)
    )


def _told(row: Mapping[str, Any]) -> str:
    """The answer of a row as a person wrote it, or its list."""
    if isinstance(row.get("answers"), list) and row["answers"] and isinstance(row["answers"][0], list):
        return ", ".join(_answers(each)[0] for each in row["answers"])
    return _answers(row.get("answer"))[0]


FAMILIES: dict[str, Family] = {
    "json_kv": Family(_json_kv, "json_kv", "recall", "substring_exact_match"),
    "kilt": Family(_kilt, "rag", "rag", "substring_exact_match", "id"),
    "msmarco": Family(_msmarco, "rerank", "rerank", "NDCG@10", "qid"),
    "ruler": Family(_ruler, "niah_multivalue", "recall", "ruler_recall"),
    "narrativeqa": Family(_export, "answer", "longqa", "rougeL_f1", judge="score"),
    "infbench_qa": Family(_export, "answer", "longqa", "rougeL_f1"),
    "infbench_choice": Family(_export, "choice", "longqa", "exact_match"),
    "infbench_sum": Family(_export, "summ", "summ", "rougeL_f1", judge="score"),
    "multi_lexsum": Family(_export, "summ", "summ", "rougeL_f1", judge="score"),
    "icl": Family(_export, "icl", "icl", "exact_match"),
    "alce_asqa": Family(_alce, "alce_asqa", "cite", "str_em"),
    "alce_qampari": Family(_alce, "alce_qampari", "cite", "qampari_rec_top5"),
}
"""By what the names of the data sets begin with."""


def _answers(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        value = value.get("answers", value.get("answer"))
    found = value if isinstance(value, list) else [value]
    return [str(each) for each in found if each is not None] or [""]
