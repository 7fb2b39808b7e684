"""`lmlab poison`: how robust one's own retriever is against crafted passages, and what stops them.

This measures and hardens one's own retriever on one's own corpora; it writes overlays that are marked and can be
removed, and nothing into a corpus or an index.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import example, print_table
from lmlab.errors import UserError
from lmlab.methods.corpus_poisoning.config import CraftConfig

if TYPE_CHECKING:
    from lmlab.methods.corpus_poisoning.setup import Retriever

app = typer.Typer(
    no_args_is_help=True,
    help="Robustness of one's own retriever: craft passages, measure, gate, harden, measure again.",
)

Data = Annotated[
    str, typer.Option("--data", "-d", "--dataset", "--eval_dataset", help="A BEIR folder: corpus, queries, judgments.")
]
EncoderPlace = Annotated[
    str,
    typer.Option("--encoder", "-e", "--model_code", "--eval_model_code", help="Directory of an encoder, or minilm."),
]
QueryEncoder = Annotated[str | None, typer.Option(help="Another encoder for queries.", show_default=False)]
Cache = Annotated[Path, typer.Option("--cache", "-c", help="Folder for vectors and thresholds, made once.")]
Split = Annotated[str, typer.Option(help="Which judgments.")]
IgnoreMissing = Annotated[bool, typer.Option("--ignore-missing", help="Leave out judgments of unknown ids.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="Of the encoder: fp32 or bf16.")]
MaxLength = Annotated[
    int | None,
    typer.Option("--max-length", "--max_seq_length", min=1, help="Longest document in tokens.", show_default=False),
]
Passages = Annotated[
    Path, typer.Option("--passages", "-p", "--advp_path", help="Crafted passages: a folder, or adversarial.jsonl.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Depths = Annotated[list[int] | None, typer.Option("--k", help="Depths; may be repeated.", show_default=False)]
Settings = Annotated[
    Path | None,
    typer.Option("--config", help="A YAML file with settings, which go before options.", show_default=False),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting, which goes before options.", show_default=False),
]

DEPTHS = (1, 3, 5, 10, 20, 50, 100)


def retriever(
    encoder: str,
    cache: Path,
    precision: str,
    device: str,
    query_encoder: str | None = None,
    max_length: int | None = None,
) -> Retriever:
    """What options name."""
    from lmlab.methods.corpus_poisoning.attack.craft import EncoderSpec
    from lmlab.methods.corpus_poisoning.setup import Retriever

    if precision not in ("fp32", "bf16"):
        raise UserError(f"--precision {precision}: fp32 or bf16.")
    options: dict[str, Any] = {"device": device, "query_encoder": query_encoder, "max_length": max_length}
    given = {key: value for key, value in options.items() if value is not None}
    return Retriever(EncoderSpec(encoder, given), cache, precision)  # type: ignore[arg-type]


def with_files(settings: CraftConfig, config: Path | None, set_: list[str] | None) -> CraftConfig:
    """Settings with those of a file and of `--set`."""
    from lmlab.config import apply_overrides, validate
    from lmlab.files import read_yaml

    data = {**settings.model_dump(), **(read_yaml(config) if config else {})}
    return validate(CraftConfig, apply_overrides(data, set_ or []), "the settings")


@app.command(
    epilog=example(
        "lmlab poison craft --data data/boolq --encoder minilm --k 10 --out attack",
        "lmlab poison craft --data data/boolq --encoder minilm --payload-position prefix --out attack",
    )
)
@options(CraftConfig, exclude=("payload", "precision"))
def craft(
    data: Data,
    settings: CraftConfig,
    encoder: EncoderPlace = "minilm",
    out: Annotated[Path, typer.Option("--out", "-o", "--output_file", help="Folder of the attack.")] = Path("attack"),
    cache: Cache = Path("vectors"),
    split: Split = "train",
    queries: Annotated[
        str | None, typer.Option(help="Other queries: a file or folder; then judgments are not needed.")
    ] = None,
    payload_file: Annotated[
        Path | None,
        typer.Option(help="A text of your own for every passage, which the report shows.", show_default=False),
    ] = None,
    query_encoder: QueryEncoder = None,
    device: Device = "cpu",
    precision: PrecisionOption = "bf16",
    max_length: MaxLength = None,
    max_seconds: Annotated[
        float | None, typer.Option(min=1, help="Stop after so long; the next run goes on.", show_default=False)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a run was cut off; that is what happens anyway.")
    ] = False,
    ignore_missing: IgnoreMissing = False,
    parity: Annotated[
        bool,
        typer.Option("--parity", "--do_kmeans", help="The reference's algorithm with its quirks, for comparison."),
    ] = False,
    num_iter: Annotated[int, typer.Option("--iterations", "--num_iter", min=1, help="Of --parity.")] = 5000,
    num_grad_iter: Annotated[int, typer.Option("--num_grad_iter", min=1, help="Of --parity.")] = 1,
    batch: Annotated[int, typer.Option("--batch", "--per_gpu_eval_batch_size", min=1, help="Of --parity.")] = 64,
    kmeans_split: Annotated[
        int | None, typer.Option("--kmeans_split", min=0, help="Of --parity: one cluster only.", show_default=False)
    ] = None,
    dont_init_gold: Annotated[bool, typer.Option("--dont_init_gold", help="Of --parity.")] = False,
    config: Settings = None,
    set_: Set = None,
) -> None:
    """Craft passages against a retriever of your own; they are written as an overlay with a list of ids to remove."""
    from lmlab.methods.corpus_poisoning.attack.run import craft_for

    if payload_file is not None:
        if not payload_file.is_file():
            raise UserError(f"No such file: '{payload_file}'.")
        place = settings.payload_position if settings.payload_position != "none" else "prefix"
        text = payload_file.read_text("utf-8").strip()
        settings = settings.model_copy(update={"payload": text, "payload_position": place})
    settings = with_files(settings, config, set_).model_copy(update={"precision": precision})
    if parity:
        from lmlab.methods.corpus_poisoning.attack.parity import craft_by_reference
        from lmlab.methods.corpus_poisoning.attack.reference import ReferenceSettings

        how = ReferenceSettings(
            settings.length, settings.candidates, batch, num_iter, num_grad_iter, not dont_init_gold
        )
        made = retriever(encoder, cache, precision, device, query_encoder, max_length)
        about = craft_by_reference(made, data, split, how, out, settings.k, kmeans_split, settings.seed)
        print(f"{about['found']} of {about['k']} clusters by the reference's algorithm: {out}")
        return
    found = craft_for(
        retriever(encoder, cache, precision, device, query_encoder, max_length),
        data,
        split,
        settings,
        out,
        queries,
        max_seconds,
        ignore_missing,
    )
    print(
        f"{len(found.passages)} passages for {len(found.clusters)} clusters of queries in {found.seconds:.0f} CPU s"
        f" ({found.evaluations:,} evaluations): {out / 'adversarial.jsonl'}\nTo remove them: {out / 'removal.txt'}"
    )


@app.command(epilog=example("lmlab poison evaluate --passages attack --data data/boolq --encoder minilm --k 10 --k 20"))
def evaluate(
    passages: Passages,
    data: Data,
    encoder: EncoderPlace = "minilm",
    cache: Cache = Path("vectors"),
    split: Split = "test",
    k: Depths = None,
    queries: Annotated[str | None, typer.Option(help="Other queries on the same corpus.", show_default=False)] = None,
    attack_queries: Annotated[
        str | None,
        typer.Option(
            help="The attacker's queries (file or folder): those that are evaluated too are told and left out.",
            show_default=False,
        ),
    ] = None,
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Evaluate on the attacker's queries too.")
    ] = False,
    index: Annotated[
        str, typer.Option(help="Also the success by this index: hnsw, faiss-hnsw, int8, binary, truncated.")
    ] = "exact",
    query_encoder: QueryEncoder = None,
    device: Device = "cpu",
    precision: PrecisionOption = "bf16",
    max_length: MaxLength = None,
    ignore_missing: IgnoreMissing = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Figures as JSON.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """The success rate of passages on held-out queries, and what they displace."""
    from lmlab.files import write_json
    from lmlab.methods.corpus_poisoning.measure.run import evaluate_on

    found = evaluate_on(
        retriever(encoder, cache, precision, device, query_encoder, max_length),
        data,
        split,
        passages,
        sorted(set(k)) if k else list(DEPTHS),
        queries,
        attack_queries,
        allow_overlap,
        index,
        ignore_missing,
    )
    for notice in found["notices"]:
        typer.echo(notice, err=True)
    if out is not None:
        write_json(out, found)
    if as_json:
        print(json.dumps(found))
        return
    show(found)


def show(found: dict[str, Any]) -> None:
    """Print figures of an attack."""
    from rich.table import Table

    table = Table("k", "success %", "95 % interval", "ceiling %", "share of results %", title=found["title"])
    for k, value in found["asr"].items():
        low, high = found["interval"][k]
        ceiling = found["perfect"].get(k) if found["perfect"] else None
        table.add_row(
            str(k),
            f"{100 * value:.2f}",
            f"{100 * low:.2f} to {100 * high:.2f}",
            "" if ceiling is None else f"{100 * ceiling:.2f}",
            f"{100 * found['share'][k]:.2f}",
        )
    print_table(table)
    for line in found["lines"]:
        print(line)


detect_app = typer.Typer(no_args_is_help=True, help="Detectors: fit a gate, score passages, sweep thresholds.")
app.add_typer(detect_app, name="detect")

Names = Annotated[
    list[str] | None,
    typer.Option(
        "--detector",
        help="hubness, similarity, questions, norm, near_duplicate, perplexity, mask_collapse, gmtp, or one of a"
        " package; may be repeated \\[default: hubness, similarity and questions].",
        show_default=False,
    ),
]
Sentinels = Annotated[
    str | None,
    typer.Option(help="Questions of your own (file or folder), not the attacker's.", show_default=False),
]
SentinelCount = Annotated[int, typer.Option(min=1, help="How many of them are drawn.")]
LanguageModel = Annotated[str | None, typer.Option(help="A causal language model, for perplexity.", show_default=False)]
MaskedModel = Annotated[
    str | None,
    typer.Option(help="A masked language model with the encoder's vocabulary, for gmtp.", show_default=False),
]
Rate = Annotated[float, typer.Option(help="Share of clean passages that are refused.")]
Gate = Annotated[Path, typer.Option("--gate", "-g", help="Folder of a fitted gate.")]


@detect_app.command(
    "fit", epilog=example("lmlab poison detect fit --data data/boolq --sentinels data/nq-open --rate 0.005 --out gate")
)
def detect_fit(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the gate.")] = Path("gate"),
    detector: Names = None,
    sentinels: Sentinels = None,
    sentinel_count: SentinelCount = 500,
    rate: Rate = 0.01,
    language_model: LanguageModel = None,
    masked_model: MaskedModel = None,
    encoder: EncoderPlace = "minilm",
    cache: Cache = Path("vectors"),
    split: Split = "test",
    query_encoder: QueryEncoder = None,
    device: Device = "cpu",
    precision: PrecisionOption = "bf16",
) -> None:
    """Fit detectors on one half of a clean corpus, set the gate's threshold on the other, and write the gate."""
    from lmlab.methods.corpus_poisoning.defend.gate import DEFAULT_DETECTORS
    from lmlab.methods.corpus_poisoning.defend.run import context_of, fit_gate
    from lmlab.methods.corpus_poisoning.setup import Target

    target = Target.load(retriever(encoder, cache, precision, device, query_encoder), data, split)
    context = context_of(target, sentinels, sentinel_count, language_model, masked_model)
    gate = fit_gate(target, context, detector or DEFAULT_DETECTORS, rate, out)
    print(f"A gate of {', '.join(gate.detectors)} that refuses {100 * rate:g} % of clean passages: {out}")


@detect_app.command("score", epilog=example("lmlab poison detect score --gate gate --passages attack"))
def detect_score(
    passages: Passages,
    gate: Gate = Path("gate"),
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="A clean collection to part them from.", show_default=False)
    ] = None,
    language_model: LanguageModel = None,
    encoder: EncoderPlace = "minilm",
    cache: Cache = Path("vectors"),
    split: Split = "test",
    query_encoder: QueryEncoder = None,
    device: Device = "cpu",
    precision: PrecisionOption = "bf16",
) -> None:
    """Score passages by a gate's detectors; JSON."""
    from lmlab.methods.corpus_poisoning.defend.detector import Passages as Texts
    from lmlab.methods.corpus_poisoning.defend.run import dump, open_gate, read_texts, score_passages
    from lmlab.methods.corpus_poisoning.setup import Target

    found = retriever(encoder, cache, precision, device, query_encoder)
    clean = None
    if data is not None:
        target = Target.load(found, data, split)
        clean = Texts(target.data.corpus.texts, target.documents)
    print(dump(score_passages(open_gate(found, gate, language_model), read_texts(passages), clean)))


@detect_app.command(
    "sweep", epilog=example("lmlab poison detect sweep --data data/boolq --passages attack --sentinels data/nq-open")
)
def detect_sweep(
    data: Data,
    passages: Passages,
    detector: Names = None,
    sentinels: Sentinels = None,
    sentinel_count: SentinelCount = 500,
    language_model: LanguageModel = None,
    masked_model: MaskedModel = None,
    encoder: EncoderPlace = "minilm",
    cache: Cache = Path("vectors"),
    split: Split = "test",
    query_encoder: QueryEncoder = None,
    device: Device = "cpu",
    precision: PrecisionOption = "bf16",
) -> None:
    """Shares of clean and of crafted passages that each detector refuses, over thresholds; JSON."""
    from lmlab.methods.corpus_poisoning.defend.gate import DEFAULT_DETECTORS
    from lmlab.methods.corpus_poisoning.defend.run import context_of, dump, sweep_passages
    from lmlab.methods.corpus_poisoning.setup import Target

    target = Target.load(retriever(encoder, cache, precision, device, query_encoder), data, split)
    context = context_of(target, sentinels, sentinel_count, language_model, masked_model)
    print(dump(sweep_passages(target, context, detector or DEFAULT_DETECTORS, passages)))


@app.command(epilog=example("lmlab poison gate new.jsonl --gate gate --out verdicts.jsonl"))
def gate(
    source: Annotated[str, typer.Argument(help="Records of JSON lines with text; - for standard input.")],
    gate: Gate = Path("gate"),
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Verdicts; by default standard output.", show_default=False)
    ] = None,
    encoder: EncoderPlace = "minilm",
    query_encoder: QueryEncoder = None,
    language_model: LanguageModel = None,
    device: Device = "cpu",
    fail: Annotated[bool, typer.Option("--fail", help="End with exit code 1 when a passage is refused.")] = False,
) -> None:
    """Admit or refuse new documents, one verdict a line, for a pipeline that fills an index."""
    import sys

    from lmlab.files import atomic_file
    from lmlab.methods.corpus_poisoning.defend.run import open_gate, run_gate, standard_streams

    found = open_gate(retriever(encoder, Path("vectors"), "fp32", device, query_encoder), gate, language_model)
    stream, target = standard_streams(source, out)
    name = "standard input" if source == "-" else f"'{source}'"
    with stream:
        if target is None:
            total, refused = run_gate(found, stream, sys.stdout, name)
        else:
            with atomic_file(target, "w") as sink:
                total, refused = run_gate(found, stream, sink, name)
    typer.echo(f"{total - refused:,} admitted, {refused:,} refused.", err=True)
    if fail and refused:
        raise typer.Exit(1)


@app.command(
    epilog=example(
        "lmlab poison report --data data/boolq --passages attack --passages stuffing --sentinels data/nq-open --out"
        " report"
    )
)
def report(
    data: Data,
    passages: Annotated[list[Path], typer.Option("--passages", "-p", help="Folders of attacks; may be repeated.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of report.html, report.json, report.md.")] = Path(
        "report"
    ),
    detector: Names = None,
    sentinels: Sentinels = None,
    sentinel_count: SentinelCount = 500,
    language_model: LanguageModel = None,
    masked_model: MaskedModel = None,
    k: Depths = None,
    no_defenses: Annotated[
        bool, typer.Option("--no-defenses", help="Leave out the table of defenses; the report says so.")
    ] = False,
    rate: Rate = 0.005,
    no_fusion: Annotated[bool, typer.Option("--no-fusion", help="Leave out fusion with BM25.")] = False,
    encoder: EncoderPlace = "minilm",
    cache: Cache = Path("vectors"),
    split: Split = "test",
    query_encoder: QueryEncoder = None,
    device: Device = "cpu",
    precision: PrecisionOption = "bf16",
) -> None:
    """One page: success undefended and defended, and what each defense costs in clean quality."""
    from lmlab.methods.corpus_poisoning import report as pages
    from lmlab.methods.corpus_poisoning.defend.gate import DEFAULT_DETECTORS
    from lmlab.methods.corpus_poisoning.defend.run import context_of, report_rows
    from lmlab.methods.corpus_poisoning.setup import Target

    if sentinels is None and not no_defenses and not detector:
        raise UserError(
            "A report of attacks needs a table of defenses beside them, and the defenses need sentinel questions.",
            "Give --sentinels, or name other detectors, or say --no-defenses.",
        )
    target = Target.load(retriever(encoder, cache, precision, device, query_encoder), data, split)
    context = None
    if not no_defenses:
        context = context_of(target, sentinels, sentinel_count, language_model, masked_model)
    names = detector or list(DEFAULT_DETECTORS)
    depths = sorted(set(k)) if k else [depth for depth in DEPTHS if depth <= len(target.data.corpus)]
    attacks, rows = report_rows(target, context, passages, names, names, depths, not no_fusion, rate)
    pages.write(pages.build(attacks, rows), attacks, rows, out)
    print(f"Report: {out / 'report.html'}")


@app.command(
    "import",
    epilog=example(
        "lmlab poison import results/ --form reference --encoder models/contriever --out attack",
        "lmlab poison import nq.json --form poisonedrag --out attack",
    ),
)
def import_(
    source: Annotated[Path, typer.Argument(help="The reference's folder of JSON files, or PoisonedRAG's file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the overlay.")],
    form: Annotated[str, typer.Option(help="reference or poisonedrag.")] = "reference",
    encoder: EncoderPlace = "minilm",
    k: Annotated[
        int | None, typer.Option("--k", "--num_advp", min=1, help="Which k of several.", show_default=False)
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Take what is there of incomplete sets.")] = False,
    device: Device = "cpu",
) -> None:
    """Read passages of other tools as an overlay that is marked."""
    from lmlab.methods.corpus_poisoning.formats import black_box, read_poisonedrag, read_reference

    if form == "poisonedrag":
        found = black_box(read_poisonedrag(source))
        found.save(out)
        print(f"{len(found)} passages without gradients (question and text): {out}")
        return
    if form != "reference":
        raise UserError(f"--form {form}: reference or poisonedrag.")
    made = retriever(encoder, Path("vectors"), "fp32", device)
    found, about = read_reference(source, made.encoder.tokenizer, k, partial)
    found.save(out)
    told = f"k = {about['found']}/{about['k']}" if about["found"] < about["k"] else f"k = {about['k']}"
    print(f"{len(found)} passages ({told}), of which {about['round_trip']} are read again as the same tokens: {out}")


@app.command(epilog=example("lmlab poison export attack --out results --name nq --encoder models/contriever"))
def export(
    passages: Annotated[Path, typer.Argument(help="Crafted passages.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the reference's files.")],
    name: Annotated[str, typer.Option(help="The collection's name in file names.")] = "data",
    encoder: EncoderPlace = "minilm",
    device: Device = "cpu",
) -> None:
    """Write passages as the reference's files, one a cluster."""
    from lmlab.methods.corpus_poisoning.attack.crafted import AdversarialSet
    from lmlab.methods.corpus_poisoning.formats import write_reference

    found = AdversarialSet.load(passages)
    made = retriever(encoder, Path("vectors"), "fp32", device)
    write_reference(found, made.encoder.tokenizer, out, name, Path(encoder).name)
    print(f"{len(found)} files: {out}")


@app.command(epilog=example("lmlab poison harden --data data/boolq --encoder minilm --rounds 3 --out hardened"))
@options(CraftConfig, exclude=("payload", "precision", "payload_position", "target_asr"))
def harden(
    data: Data,
    settings: CraftConfig,
    encoder: EncoderPlace = "minilm",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of rounds.")] = Path("hardened"),
    cache: Cache = Path("vectors"),
    rounds: Annotated[int, typer.Option(min=1, help="Attack and train so many times.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Of training, each round.")] = 200,
    batch: Annotated[int, typer.Option(min=2, help="Queries of a step.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Of training.")] = 2e-5,
    negatives: Annotated[int, typer.Option(min=1, help="Crafted passages beside each query's document.")] = 1,
    depth: Annotated[int, typer.Option(min=1, help="Of the success that is reported.")] = 20,
    device: Device = "cpu",
    precision: PrecisionOption = "bf16",
) -> None:
    """Train a retriever with crafted passages as negatives, and attack what comes out anew, several rounds."""
    from rich.table import Table

    from lmlab.methods.corpus_poisoning.defend.harden import HardenSettings
    from lmlab.methods.corpus_poisoning.defend.harden import harden as run_rounds

    how = HardenSettings(rounds, steps, batch, learning_rate, negatives, depth)
    config = settings.model_copy(update={"precision": precision})
    rows = run_rounds(retriever(encoder, cache, precision, device), data, config, how, out)
    table = Table("round", "clean nDCG@10", f"ASR@{depth} %, old passages", f"ASR@{depth} %, new attack")
    for row in rows:
        old, new = row[f"asr@{depth}_old"], row[f"asr@{depth}_new"]
        told = "" if old is None else f"{100 * old:.2f}"
        table.add_row(str(row["round"]), f"{row['clean_ndcg@10']:.4f}", told, f"{100 * new:.2f}")
    print_table(table)
