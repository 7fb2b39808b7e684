"""The commands `lmlab retrieval`: encode collections, search them, measure what is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmlab.commandline.options import example, print_table
from lmlab.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmlab.retrieval import AnyEncoder, EmbeddingStore, RetrievalDataset
    from lmlab.retrieval.encoders.encoder import Kind

app = typer.Typer(
    no_args_is_help=True, help="Dense and lexical retrieval: encode collections, search them, measure what is found."
)

_DEPTH = 100  # results for each query: fusion depends on it

Data = Annotated[str, typer.Option("--data", "-d", help="A BEIR folder: corpus.jsonl, queries.jsonl, qrels/.")]
EncoderPlace = Annotated[
    str,
    typer.Option(
        "--encoder",
        "-e",
        help="Directory of an encoder (sentence-transformers, two towers, or any model), or minilm where its package is"
        " installed.",
    ),
]
QueryEncoder = Annotated[str | None, typer.Option(help="Another encoder for queries.", show_default=False)]
Cache = Annotated[Path, typer.Option("--cache", "-c", help="Folder for vectors, which are made once.")]
Split = Annotated[str, typer.Option(help="Which judgments.")]
IgnoreMissing = Annotated[bool, typer.Option("--ignore-missing", help="Leave out judgments of unknown ids.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="Of the network: fp32 or bf16.")]
Pooling = Annotated[str | None, typer.Option(help="Of a plain model: mean, cls, lasttoken, ...", show_default=False)]
Prompt = Annotated[
    list[str] | None,
    typer.Option(metavar="KIND=TEXT", help="What stands before each query or document.", show_default=False),
]
MaxLength = Annotated[int | None, typer.Option(min=1, help="Longest text in tokens.", show_default=False)]
Dims = Annotated[int | None, typer.Option("--dims", min=1, help="Keep so many first dimensions.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Index = Annotated[str, typer.Option(help="exact, hnsw, faiss-hnsw, faiss-ivf, int8, binary or truncated.")]


def load(
    place: str,
    device: str,
    query_encoder: str | None = None,
    pooling: str | None = None,
    prompt: list[str] | None = None,
    max_length: int | None = None,
    dims: int | None = None,
) -> AnyEncoder:
    """The encoder that options name."""
    from lmlab.models.pooling import POOLING_MODES
    from lmlab.retrieval import load_encoder

    if pooling is not None and pooling not in POOLING_MODES:
        raise UserError(f"--pooling {pooling}: known are {', '.join(POOLING_MODES)}.")
    prompts = None
    if prompt:
        pairs = [each.partition("=") for each in prompt]
        if any(kind not in ("query", "document") or not equals for kind, equals, _ in pairs):
            raise UserError("--prompt: expected query=TEXT or document=TEXT.")
        prompts = {kind: text for kind, _, text in pairs}
    return load_encoder(
        place,
        device,
        query_encoder,
        pooling=pooling,  # type: ignore[arg-type]
        prompts=prompts,
        max_length=max_length,
        truncate_dim=dims,
    )


def check_precision(precision: str) -> Any:
    """fp32 or bf16."""
    if precision not in ("fp32", "bf16"):
        raise UserError(f"--precision {precision}: fp32 or bf16.")
    return precision


@app.command(
    epilog=example(
        "lmlab retrieval encode --data data/scifact --encoder minilm --cache cache/scifact",
        "lmlab retrieval encode --data data/scifact --encoder models/e5 --prompt 'query=query: '"
        " --prompt 'document=passage: '",
    )
)
def encode(
    data: Data,
    encoder: EncoderPlace,
    cache: Cache = Path("vectors"),
    query_encoder: QueryEncoder = None,
    device: Device = "cpu",
    precision: PrecisionOption = "fp32",
    pooling: Pooling = None,
    prompt: Prompt = None,
    max_length: MaxLength = None,
    dims: Dims = None,
    half: Annotated[bool, typer.Option("--half", help="Store 16 bits a number.")] = False,
) -> None:
    """Encode all documents and queries of a collection; what is there already is not made again."""
    from lmlab.retrieval import EmbeddingStore, read_corpus, read_queries
    from lmlab.retrieval.collections.read import judged_queries

    made = load(encoder, device, query_encoder, pooling, prompt, max_length, dims)
    corpus, queries = read_corpus(_file(data, "corpus")), read_queries(data)
    parts: list[tuple[str, Kind, Sequence[str], Sequence[str]]] = [("document", "document", corpus.ids, corpus.texts)]
    for split, judged in judged_queries(data).items():  # where `search` and `evaluate` look for them
        asked = queries.only([id for id in queries.ids if id in judged])
        parts.append((f"query-{split}", "query", asked.ids, asked.texts))
    if len(parts) == 1:
        parts.append(("query", "query", queries.ids, queries.texts))
    for name, kind, ids, texts in parts:
        store = EmbeddingStore.build(
            cache / name, made, ids, list(texts), kind, check_precision(precision), "float16" if half else "float32"
        )
        print(f"{store.meta['rows']:,} {kind} vectors of {store.meta['dim']} dimensions in {store.location}")


def _file(root: str, part: str) -> str:
    from lmlab.retrieval.collections.read import collection_part, collection_root

    return collection_part(collection_root(root), part)


def stores(
    data: RetrievalDataset, encoder: AnyEncoder, cache: Path, precision: str
) -> tuple[EmbeddingStore, EmbeddingStore]:
    """The vectors of documents and of queries, made where they are not there."""
    from lmlab.retrieval import EmbeddingStore

    documents = EmbeddingStore.build(
        cache / "document", encoder, data.corpus.ids, data.corpus.texts, "document", check_precision(precision)
    )
    place = cache / f"query-{data.split}"
    queries = EmbeddingStore.build(
        place, encoder, data.queries.ids, list(data.queries.texts), "query", check_precision(precision)
    )
    return documents, queries


def _search(
    how: str, data: RetrievalDataset, encoder: str, cache: Path, precision: str, index: str, k: int, **options: Any
) -> dict[str, Any]:
    from lmlab.retrieval import BM25, fuse_rrf, make_index

    runs = []
    if how in ("bm25", "hybrid"):
        lexical = BM25(data.corpus.ids, data.corpus.texts)
        runs.append(lexical.run(data.queries.ids, data.queries.texts, k))
    if how in ("dense", "hybrid"):
        made = load(encoder, **options)
        documents, queries = stores(data, made, cache, precision)
        vectors = documents.chunks() if index == "exact" else documents.vectors()  # exact search reads them in place
        found = make_index(index, data.corpus.ids, vectors)  # type: ignore[arg-type]
        hits = found.topk(queries.vectors(), k)
        if hits.notice:
            typer.echo(hits.notice, err=True)
        runs.append(hits.run(data.queries.ids, data.corpus.ids))
    if not runs:
        raise UserError(f"--by {how}: dense, bm25 or hybrid.")
    return runs[0] if len(runs) == 1 else fuse_rrf(runs, k)


By = Annotated[str, typer.Option("--by", help="dense, bm25, or hybrid (both by reciprocal ranks).")]
Depth = Annotated[int, typer.Option("--k", min=1, help="Results for each query.")]


@app.command(
    epilog=example(
        "lmlab retrieval search --data data/scifact --encoder minilm --out run.trec",
        "lmlab retrieval search --data data/scifact --by bm25 --out run.json",
    )
)
def search(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="The run: TREC's columns, or JSON by its name.")],
    encoder: EncoderPlace = "minilm",
    cache: Cache = Path("vectors"),
    by: By = "dense",
    k: Depth = _DEPTH,
    split: Split = "test",
    index: Index = "exact",
    query_encoder: QueryEncoder = None,
    device: Device = "cpu",
    precision: PrecisionOption = "fp32",
    pooling: Pooling = None,
    prompt: Prompt = None,
    ignore_missing: IgnoreMissing = False,
) -> None:
    """Search a collection and write the run."""
    from lmlab.retrieval import load_dataset, write_run

    read = load_dataset(data, split, ignore_missing)
    _tell(read)
    options = {"device": device, "query_encoder": query_encoder, "pooling": pooling, "prompt": prompt}
    write_run(_search(by, read, encoder, cache, precision, index, k, **options), out, tag=by)
    print(f"{len(read.queries):,} queries, {k} results each: {out}")


@app.command(
    epilog=example(
        "lmlab retrieval evaluate --data data/scifact --encoder minilm --cache cache/scifact",
        "lmlab retrieval evaluate --data data/scifact --run run.trec --k 10 --k 100",
    )
)
def evaluate(
    data: Data,
    encoder: EncoderPlace = "minilm",
    cache: Cache = Path("vectors"),
    run: Annotated[
        Path | None, typer.Option(help="A run (TREC or JSON) to measure in place of searching.", show_default=False)
    ] = None,
    by: By = "dense",
    k: Annotated[list[int] | None, typer.Option("--k", help="Depths; may be repeated.", show_default=False)] = None,
    split: Split = "test",
    index: Index = "exact",
    query_encoder: QueryEncoder = None,
    device: Device = "cpu",
    precision: PrecisionOption = "fp32",
    pooling: Pooling = None,
    prompt: Prompt = None,
    max_length: MaxLength = None,
    dims: Dims = None,
    keep_self: Annotated[
        bool, typer.Option("--keep-self", help="Keep results whose id is the query's (by default they are removed).")
    ] = False,
    ignore_missing: IgnoreMissing = False,
    as_json: AsJson = False,
) -> None:
    """Measure retrieval on a collection's judgments: nDCG, MAP, Recall, MRR and more, as trec_eval computes them."""
    from rich.table import Table

    from lmlab.retrieval import evaluate_run, load_dataset, read_run
    from lmlab.retrieval.metrics import DEFAULT_K

    read = load_dataset(data, split, ignore_missing)
    _tell(read)
    depths = sorted(set(k)) if k else list(DEFAULT_K)
    if run is not None:
        found = read_run(run, max(depths) + 1)
    else:
        options = {"device": device, "query_encoder": query_encoder, "pooling": pooling, "prompt": prompt}
        options |= {"max_length": max_length, "dims": dims}  # type: ignore[dict-item]
        found = _search(by, read, encoder, cache, precision, index, max(_DEPTH, max(depths) + 1), **options)
    figures = evaluate_run(found, read.qrels, depths, not keep_self)
    if figures.self_matches:
        typer.echo(f"{figures.self_matches:,} results that are their own query were removed.", err=True)
    if figures.without_hits:
        typer.echo(f"{figures.without_hits:,} judged queries found nothing; they count 0.", err=True)
    means = {name: round(value, 5) for name, value in figures.means.items()}
    if as_json:
        print(json.dumps({"data": read.name, "split": split, "queries": len(read.qrels), **means}))
        return
    names = list(dict.fromkeys(name.partition("@")[0] for name in means))
    table = Table("k", *names)
    for depth in depths:
        table.add_row(str(depth), *(f"{means[f'{name}@{depth}']:.5f}" for name in names))
    print_table(table)


def _tell(read: RetrievalDataset) -> None:
    for notice in read.notices:
        typer.echo(notice, err=True)
