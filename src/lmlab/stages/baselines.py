"""The stage `baselines`: an n-gram model and xz on the same held-out bytes and the same questions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, Literal

from pydantic import Field

from lmlab.config import Config
from lmlab.data import read_documents
from lmlab.evals import (
    ByteNGram,
    Measurement,
    accuracy_by_domain,
    question_row,
    ratio,
    read_questions,
    xz_bits,
    xz_bits_after,
)
from lmlab.progress import progress
from lmlab.runs import Documents, DocumentsInput, Questions, QuestionsInput, Results, Stage, StageContext


class BaselinesConfig(Config):
    """Which documents and questions.

    Attributes:
        order: of the byte n-gram model with interpolated modified Kneser-Ney smoothing.
        xz_after_training_text: also measure xz on the held-out text that follows the training text of its domain in one
            stream.
    """

    documents: DocumentsInput
    task: QuestionsInput | None = None
    order: int = Field(default=6, ge=1, le=7)
    xz_after_training_text: bool = True


class BaselinesResults(Results):
    """Of each baseline: `bits_per_byte` by domain, and `accuracy` where there are questions."""

    order: int
    baselines: dict[str, dict[str, Any]]


class Baselines(Stage[BaselinesConfig, BaselinesResults]):
    """Writes only its results."""

    def plan(self, config: BaselinesConfig, promised: Mapping[str, Any]) -> dict[str, str]:
        """The baselines."""
        return {"baselines": f"byte {config.order}-gram, xz -9e"}

    def run(self, config: BaselinesConfig, context: StageContext) -> BaselinesResults:
        """Fit and score."""
        texts: dict[str, dict[str, list[bytes]]] = {}
        source = context.find(Documents, "documents")
        splits: tuple[Literal["train"], Literal["heldout"]] = ("train", "heldout")
        for split in splits:
            texts[split] = defaultdict(list)
            for document in read_documents(source.split(split)):
                texts[split][document.domain].append(document.text.encode())
        domains = sorted(texts["heldout"])
        with ThreadPoolExecutor() as pool:
            xz_jobs = {domain: pool.submit(xz_bits, b"".join(texts["heldout"][domain])) for domain in domains}
            primed = domains if config.xz_after_training_text else []
            primed_jobs = {
                domain: pool.submit(xz_bits_after, b"".join(texts["train"][domain]), b"".join(texts["heldout"][domain]))
                for domain in primed
            }
            with progress("baselines", 2 + len(xz_jobs) + len(primed_jobs), "parts") as advance:
                model = ByteNGram.fit((text for members in texts["train"].values() for text in members), config.order)
                advance(note="n-gram fitted")
                ngram = {
                    domain: ratio(model.bits(texts["heldout"][domain]), [len(t) for t in texts["heldout"][domain]])
                    for domain in domains
                }
                advance(note="n-gram scored")
                results: dict[str, Any] = {
                    "n-gram": {"bits_per_byte": {domain: asdict(value) for domain, value in ngram.items()}}
                }
                for name, jobs in (("xz", xz_jobs), ("xz after training text", primed_jobs)):
                    values = {}
                    for domain, job in jobs.items():
                        size = sum(map(len, texts["heldout"][domain]))
                        values[domain] = asdict(Measurement(job.result() / size, None, len(texts["heldout"][domain])))
                        advance(note=name)
                    if values:
                        results[name] = {"bits_per_byte": values}
        if config.task is not None:
            rows = [
                question_row(
                    item, [-math.log(2) * model.score(text.encode(), before.encode()) for before, text in item.pairs()]
                )
                for item in read_questions(context.find(Questions, "task").path)
            ]
            results["n-gram"]["accuracy"] = accuracy_by_domain(rows)
        return BaselinesResults(order=config.order, baselines=results)

    def summary(self, results: BaselinesResults) -> str:
        """Bits per byte."""
        return "; ".join(
            f"{name} " + ", ".join(f"{domain} {value['value']:.3f}" for domain, value in found["bits_per_byte"].items())
            for name, found in results.baselines.items()
        )
