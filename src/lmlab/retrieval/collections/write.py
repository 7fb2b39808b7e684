"""Writing collections as BEIR folders."""

from __future__ import annotations

from pathlib import Path

from lmlab.files import atomic_file, write_jsonl
from lmlab.retrieval.collections.records import Qrels, RetrievalDataset


def write_dataset(dataset: RetrievalDataset, directory: str | Path) -> None:
    """Write `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv`."""
    directory = Path(directory)
    write_jsonl(directory / "corpus.jsonl", dataset.corpus.rows())
    write_jsonl(directory / "queries.jsonl", dataset.queries.rows())
    write_qrels(dataset.qrels, directory / "qrels" / f"{dataset.split}.tsv")


def write_qrels(qrels: Qrels, path: str | Path) -> None:
    """Write judgments with their header."""
    path = Path(path)
    with atomic_file(path, "w") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        for query, judged in qrels.items():
            for document, grade in judged.items():
                file.write(f"{query}\t{document}\t{grade}\n")
