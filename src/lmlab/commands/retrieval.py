"""The commands `lmlab retrieval`: encode collections, search them, measure what is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import AsJson, example, print_table
from lmlab.retrieval.config import CollectionConfig, EncoderConfig, SearchConfig
from lmlab.words import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmlab.retrieval import AnyEncoder, Corpus, EmbeddingStore, RetrievalDataset
    from lmlab.retrieval.encoders.encoder import Kind

app = typer.Typer(no_args_is_help=True)

_DEPTH = 100  # results for each query: fusion depends on it


@app.command(
    epilog=example(
        "lmlab retrieval encode --data data/scifact --encoder minilm --cache cache/scifact",
        "lmlab retrieval encode --data data/scifact --encoder models/e5 --prompt 'query=query: '"
        " --prompt 'document=passage: '",
    )
)
@options(CollectionConfig, "collection", exclude=("split", "ignore_missing"))
@options(EncoderConfig)
def encode(
    collection: CollectionConfig,
    settings: EncoderConfig,
    half: Annotated[bool, typer.Option("--half", help="Store 16 bits a number.")] = False,
) -> None:
    """Encode all documents and queries of a collection; what is there already is not made again."""
    from lmlab.retrieval import EmbeddingStore, load_encoder, read_corpus, read_queries
    from lmlab.retrieval.collections.read import collection_name, judged_queries

    data, made = collection.data, load_encoder(settings.encoder, **settings.arguments())
    corpus, queries = read_corpus(_file(data, "corpus"), collection.redteam), read_queries(data)
    _tell(corpus)
    parts: list[tuple[str, Kind, Sequence[str], Sequence[str]]] = [("document", "document", corpus.ids, corpus.texts)]
    for split, judged in judged_queries(data).items():  # where `search` and `evaluate` look for them
        asked = queries.only([id for id in queries.ids if id in judged])
        parts.append((f"query-{split}", "query", asked.ids, asked.texts))
    folder = _folder(settings, made, collection_name(data), corpus.ids)
    if len(parts) == 1:
        parts.append(("query", "query", queries.ids, queries.texts))
    for name, kind, ids, texts in parts:
        store = EmbeddingStore.build(
            folder / name, made, ids, list(texts), kind, settings.precision, "float16" if half else "float32"
        )
        print(f"{store.meta['rows']:,} {kind} vectors of {store.meta['dim']} dimensions in {store.location}")


def _folder(settings: EncoderConfig, encoder: AnyEncoder, name: str, ids: Sequence[str]) -> Path:
    """Where the vectors of a collection are."""
    from lmlab.retrieval.store import collection_folder, encoder_folder

    return encoder_folder(settings.cache, encoder, settings.precision) / collection_folder(name, ids)


def _file(root: str, part: str) -> str:
    from lmlab.retrieval.collections.read import collection_part, collection_root

    return collection_part(collection_root(root), part)


def stores(
    data: RetrievalDataset, encoder: AnyEncoder, settings: EncoderConfig
) -> tuple[EmbeddingStore, EmbeddingStore]:
    """The vectors of documents and of queries, made where they are not there."""
    from lmlab.retrieval import EmbeddingStore

    precision, cache = settings.precision, _folder(settings, encoder, data.name, data.corpus.ids)
    documents = EmbeddingStore.build(
        cache / "document", encoder, data.corpus.ids, data.corpus.texts, "document", precision
    )
    place = cache / f"query-{data.split}"
    queries = EmbeddingStore.build(place, encoder, data.queries.ids, list(data.queries.texts), "query", precision)
    return documents, queries


def _search(data: RetrievalDataset, settings: EncoderConfig, how: SearchConfig, k: int) -> dict[str, Any]:
    from lmlab.retrieval import BM25, fuse_rrf, load_encoder, make_index

    if how.by == "late":
        return _search_late(data, settings, how, k)
    runs = []
    if how.by in ("bm25", "hybrid"):
        lexical = BM25(data.corpus.ids, data.corpus.texts)
        runs.append(lexical.run(data.queries.ids, data.queries.texts, k))
    if how.by in ("dense", "hybrid"):
        documents, queries = stores(data, load_encoder(settings.encoder, **settings.arguments()), settings)
        exact = how.index == "exact"  # exact search reads them in place
        found = make_index(how.index, data.corpus.ids, documents.chunks() if exact else documents.vectors())
        hits = found.topk(queries.vectors(), k)
        if hits.notice:
            typer.echo(hits.notice, err=True)
        runs.append(hits.run(data.queries.ids, data.corpus.ids))
    return runs[0] if len(runs) == 1 else fuse_rrf(runs, k)


def _search_late(data: RetrievalDataset, settings: EncoderConfig, how: SearchConfig, k: int) -> dict[str, Any]:
    """By a vector for each token, of which nothing is stored: they are a hundred times those of documents.

    Raises:
        UserError: a setting is given that means nothing here.
    """
    from lmlab.errors import UserError
    from lmlab.retrieval import LateIndex, load_late_encoder

    given = {"query_encoder", "pooling", "max_length", "dims"} & {name for name, value in settings if value is not None}
    given |= {"prompt"} if settings.prompt else set()
    given |= {"index"} if how.index != "exact" else set()
    if given:
        told = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(given))
        raise UserError(
            f"Late interaction takes its settings from the encoder's directory, not {told}.", "Leave it out."
        )
    encoder = load_late_encoder(settings.encoder, settings.device)
    documents = encoder.encode_text(data.corpus.texts, "document", settings.precision)
    queries = encoder.encode_text(data.queries.texts, "query", settings.precision)
    hits = LateIndex(data.corpus.ids, documents).topk(queries, k)
    if hits.notice:
        typer.echo(hits.notice, err=True)
    return hits.run(data.queries.ids, data.corpus.ids)


@app.command(
    epilog=example(
        "lmlab retrieval search --data data/scifact --encoder minilm --out run.trec",
        "lmlab retrieval search --data data/scifact --by bm25 --out run.json",
    )
)
@options(CollectionConfig, "collection")
@options(EncoderConfig)
@options(SearchConfig, "how")
def search(
    collection: CollectionConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="The run: TREC's columns, or JSON by its name.")],
    settings: EncoderConfig,
    how: SearchConfig,
    k: Annotated[int, typer.Option("--k", min=1, help="Results for each query.")] = _DEPTH,
) -> None:
    """Search a collection and write the run."""
    from lmlab.retrieval import load_dataset, write_run

    read = load_dataset(collection.data, collection.split, collection.ignore_missing, collection.redteam, judged=False)
    _tell(read)
    found = _search(read, settings, how, k)
    write_run(found, out, tag=how.by)
    print(f"{counted(len(read.queries), 'queries')}, {counted(sum(map(len, found.values())), 'results')}: {out}")


@app.command(
    epilog=example(
        "lmlab retrieval evaluate --data data/scifact --encoder minilm --cache cache/scifact",
        "lmlab retrieval evaluate --data data/scifact --run run.trec --k 10 --k 100",
    )
)
@options(CollectionConfig, "collection")
@options(EncoderConfig)
@options(SearchConfig, "how")
def evaluate(
    collection: CollectionConfig,
    settings: EncoderConfig,
    how: SearchConfig,
    run: Annotated[
        Path | None, typer.Option(help="A run (TREC or JSON) to measure in place of searching.", show_default=False)
    ] = None,
    k: Annotated[list[int] | None, typer.Option("--k", help="Depths; may be repeated.", show_default=False)] = None,
    keep_self: Annotated[
        bool, typer.Option("--keep-self", help="Keep results whose id is the query's (by default they are removed).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure retrieval on a collection's judgments: nDCG, MAP, Recall, MRR and more, as trec_eval computes them."""
    from rich.table import Table

    from lmlab.retrieval import evaluate_run, load_dataset, read_run
    from lmlab.retrieval.metrics import DEFAULT_K

    read = load_dataset(collection.data, collection.split, collection.ignore_missing, collection.redteam)
    _tell(read)
    depths = sorted(set(k)) if k else list(DEFAULT_K)
    if run is not None:
        found = read_run(run, max(depths) + 1)
    else:
        found = _search(read, settings, how, max(_DEPTH, max(depths) + 1))
    figures = evaluate_run(found, read.qrels, depths, not keep_self)
    if figures.self_matches:
        typer.echo(f"Left out: {counted(figures.self_matches, 'results')}, each of which was its own query.", err=True)
    if figures.without_hits:
        typer.echo(f"{counted(figures.without_hits, 'judged queries')} found nothing; they count 0.", err=True)
    means = {name: round(value, 5) for name, value in figures.means.items()}
    if as_json:
        print(json.dumps({"data": read.name, "split": collection.split, "queries": len(read.qrels), **means}))
        return
    names = list(dict.fromkeys(name.partition("@")[0] for name in means))
    table = Table("k", *names)
    for depth in depths:
        table.add_row(str(depth), *(f"{means[f'{name}@{depth}']:.5f}" for name in names))
    print_table(table)


def _tell(read: RetrievalDataset | Corpus) -> None:
    for notice in read.notices:
        typer.echo(notice, err=True)
