"""Which function plans the contexts of which task."""

from __future__ import annotations

from collections.abc import Callable

from lmlab.evals.long.draft import Draw, Plan
from lmlab.evals.long.tasks.documents import longqa, ppl_gain, repo_def, summ
from lmlab.evals.long.tasks.icl import icl
from lmlab.evals.long.tasks.procedures import proc
from lmlab.evals.long.tasks.recall import json_kv, niah, niah_multikey, niah_multivalue
from lmlab.evals.long.tasks.retrieval import rag, rerank

PLANS: dict[str, Callable[[Draw], Plan]] = {
    "json_kv": json_kv,
    "niah": niah,
    "niah_multikey": niah_multikey,
    "niah_multivalue": niah_multivalue,
    "repo_def": repo_def,
    "rag": rag,
    "rerank": rerank,
    "icl": icl,
    "longqa": longqa,
    "summ": summ,
    "proc": proc,
    "ppl_gain": ppl_gain,
}
