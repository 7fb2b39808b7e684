"""Unsupervised re-ranking of passages by summaries in their place (Chevalier et al. 2023, section 6.2; the prompt of
Sachan et al. 2022).

Shapes: K passages, P vectors, T tokens of a question, D model width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.evals.rows import RowFile
from lmlab.files import read_mapping, sha256_json, write_json
from lmlab.hardware.gemm import fast_inference
from lmlab.methods.autocompressor.compressor.files import fingerprint
from lmlab.methods.autocompressor.compressor.model import AutoCompressor
from lmlab.models import SegmentError
from lmlab.progress import progress
from lmlab.retrieval.metrics import recall

BEFORE, AFTER = "Passage: ", ". Please write a question based on this passage."
RESULTS, ROWS = "rerank.json", "rows.jsonl"


class Reranker:
    """Scores passages by how probable a question is after them.

    Arguments:
        compressor: that reads.
        tokenizer: its tokenizer.
    """

    def __init__(self, compressor: AutoCompressor, tokenizer: Tokenizer) -> None:
        self.compressor, self.tokenizer = compressor, tokenizer
        self._before = tokenizer.encode_prompt(BEFORE.rstrip())
        self._after = tokenizer.encode(AFTER)

    @torch.no_grad()
    def score(self, question: str, passages: Sequence[Tensor | str]) -> list[float]:
        """The mean log-probability of the question's tokens behind each passage, given as its vectors [P, D] or as
        text.

        Raises:
            SegmentError: a passage, the prompt and the question exceed the window.
        """
        return [self._one(self.tokenizer.encode(" " + question, "as_text"), passage) for passage in passages]

    def _one(self, question: Sequence[int], passage: Tensor | str) -> float:
        model = self.compressor.model
        device, dtype = model.embedding.weight.device, model.embedding.weight.dtype
        budget = self.compressor.config.position_budget or 0
        if isinstance(passage, str):
            passage_ids = self.tokenizer.encode(" " + passage, "as_text")
            middle = model.embed(torch.tensor([passage_ids], device=device))
            placed = [True] * len(passage_ids)
        else:
            middle = passage[None].to(device=device, dtype=dtype)
            # with a budget vectors have positions of their own, and the text begins behind those
            placed = [self.compressor.positions and not budget] * len(passage)
        text = [*self._after, *question]
        parts = [model.embed(torch.tensor([ids], device=device)) for ids in (self._before, text)]
        embeds_1SD = torch.cat((parts[0], middle, parts[1]), 1)
        placed = [True] * len(self._before) + placed + [True] * len(text)
        needed = budget + sum(placed)
        if needed > model.config.max_seq_len:
            raise SegmentError(
                f"A passage with its question has {needed} positions; the window has {model.config.max_seq_len}.",
                "Take shorter passages.",
            )
        placed_1S = torch.tensor([placed], device=device)
        own_1S = (~placed_1S).long().cumsum(1) - 1
        own_1S = own_1S % budget if budget else torch.full_like(own_1S, -1)
        positions_1S = torch.where(placed_1S, budget + placed_1S.long().cumsum(1) - 1, own_1S)
        hidden_1SD = model(inputs_embeds_BTD=embeds_1SD, position_ids_BT=positions_1S, logits="none").hidden_BTD
        count = len(question)
        targets_1T = torch.tensor([list(question)], device=device)
        loss = self.compressor.loss_of(hidden_1SD[:, -count - 1 : -1], targets_1T)
        return -float(loss.sum) / count


def measure_rerank(
    reranker: Reranker,
    questions: Mapping[str, str],
    candidates: Mapping[str, Mapping[str, float]],
    relevant: Mapping[str, Mapping[str, int]],
    ways: Mapping[str, Callable[[str], Tensor | str]],
    out: Path,
    k: int = 20,
    about: Sequence[Any] = (),
) -> dict[str, Any]:
    """Recall at k of the first stage and after re-ranking, and questions a second; questions that an earlier attempt
    ranked are not ranked again.

    Arguments:
        questions: id -> text.
        candidates: for each question the first stage's passages with their scores.
        relevant: for each question its judged passages.
        ways: name -> what stands for a passage: its vectors, or its text.
        about: what else decides the figures, such as the store.

    Raises:
        UserError: no question is judged and has candidates, or the folder holds another measurement.
    """
    asked = [id for id in questions if candidates.get(id) and any(grade > 0 for grade in relevant.get(id, {}).values())]
    if not asked:
        raise UserError("No question has candidates and a relevant passage.")
    out.mkdir(parents=True, exist_ok=True)
    texts = {id: questions[id] for id in asked}
    told = [fingerprint(reranker.compressor), list(ways), k, texts, {id: dict(candidates[id]) for id in asked}]
    key = sha256_json([*told, list(about)])
    if (out / "key.json").exists() and read_mapping(out / "key.json").get("key") != key:
        raise UserError(f"'{out}' holds the measurement of other questions, models or settings.", "Choose another.")
    write_json(out / "key.json", {"key": key})
    rows = RowFile(out / ROWS)
    done = rows.done()
    with progress("rank", len(asked), "questions", start=len(done)) as advance, fast_inference():
        for id in asked:
            if id in done:
                continue
            first = sorted(candidates[id], key=lambda name: (-candidates[id][name], name))
            row: dict[str, Any] = {"id": id, "first": first}
            for name, stands in ways.items():
                begun = time.perf_counter()
                scores = reranker.score(questions[id], [stands(passage) for passage in first])
                order = sorted(range(len(first)), key=lambda number: (-scores[number], number))
                row |= {name: [first[n] for n in order], f"{name}_seconds": time.perf_counter() - begun}
            rows.append(row)
            advance(1)
    found = rows.finish(asked)
    results: dict[str, Any] = {"questions": len(asked), "k": k, "ways": {}}
    for name in ("first", *ways):
        shares = [recall(row[name], relevant[row["id"]], k) for row in found]
        cell: dict[str, Any] = {"recall": sum(shares) / len(shares)}
        if name != "first":
            cell["questions_per_second"] = len(found) / sum(row[f"{name}_seconds"] for row in found)
        results["ways"][name] = cell
    write_json(out / RESULTS, results)
    return results
