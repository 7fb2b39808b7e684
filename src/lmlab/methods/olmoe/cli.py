"""`lmlab olmoe`: mixtures of experts, traced, analyzed, upcycled, compared and converted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmlab.commandline.from_config import changes, options
from lmlab.commandline.model_place import takes_model
from lmlab.commandline.options import DryRun, Set, example, run_stages
from lmlab.errors import UserError
from lmlab.methods.olmoe.config import AblationConfig, TraceConfig, UpcycleConfig

if TYPE_CHECKING:
    from lmlab.methods.olmoe.routing.trace import RoutingTrace

app = typer.Typer(
    no_args_is_help=True,
    help="Mixtures of experts (OLMoE): trace and analyze routers, upcycle dense models, compare design choices.",
)

Earlier = Annotated[
    list[str] | None,
    typer.Option(
        help="A trace of an earlier checkpoint on the same texts, for saturation: NAME=FILE; may be repeated.",
        show_default=False,
    ),
]
TraceFile = Annotated[Path, typer.Argument(help="A trace, as 'lmlab olmoe trace' writes it.")]
Step = Annotated[
    str | None,
    typer.Option(help="For files with the experts of several checkpoints: which, as step600.", show_default=False),
]


@app.command(
    epilog=example("lmlab olmoe trace models/OLMoE-1B-7B 'texts/*.jsonl.zst' --domain-field domain --out final.npz")
)
@takes_model
@options(TraceConfig)
def trace(
    model: Annotated[
        Path,
        typer.Argument(
            help="A mixture of experts (directory, checkpoint, stage or run); a directory may be any of transformers'."
        ),
    ],
    texts: Annotated[str, typer.Argument(help="Files, a glob, a folder or a URL of texts.")],
    settings: TraceConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="The trace, a .npz file.")],
) -> None:
    """Run a model over texts and store which experts its routers choose for each token."""
    from lmlab.methods.olmoe.routing.trace_texts import trace_texts

    if out.suffix != ".npz":
        raise UserError(f"--out {out}: a trace is a .npz file.")
    traced = trace_texts(model, texts, settings)
    print(
        f"{traced.input_ids_ST.size:,} tokens of {len(traced.domains)} domains, layers"
        f" {', '.join(map(str, traced.layers))}: {traced.save(out)}"
    )


@app.command(epilog=example("lmlab olmoe analyze final.npz --earlier 10%=step-1000.npz --out routing.json"))
def analyze(
    trace: TraceFile,
    earlier: Earlier = None,
    step: Step = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="All figures as JSON, with intervals.", show_default=False)
    ] = None,
) -> None:
    """Measure load, specialization, co-activation and saturation, with confidence intervals."""
    from rich.table import Table

    from lmlab.files import write_json
    from lmlab.methods.olmoe.report import NO_INTERVALS, analyze
    from lmlab.methods.olmoe.routing.trace import RoutingTrace
    from lmlab.progress import console

    final = RoutingTrace.load(trace, step)
    found = analyze(final, _earlier(earlier))
    k = str(final.top_k)
    table = Table(title=f"{found['tokens']:,} tokens, {k} of {found['num_experts']} experts", title_justify="left")
    names = [
        "layer",
        "highest load",
        "entropy",
        "vocabulary, k = 1",
        *(f"saturation, {name}" for name in found.get("saturation", {})),
    ]
    for name in names:
        table.add_column(name, justify="right")
    for place, layer in enumerate(found["layers"]):
        cells = [
            str(layer),
            *(_with_interval(found["load"][k][name], place) for name in ("max_over_mean", "normalized_entropy")),
        ]
        cells.append(f"{found['vocab_specialization']['input']['1']['macro'][place]:.3f}")
        cells += [_with_interval(each[k], place) for each in found.get("saturation", {}).values()]
        table.add_row(*cells)
    console.print(table)
    if found["sequences"] < 2:
        print(NO_INTERVALS)
    if out is not None:
        write_json(out, found)
        print(f"Figures: {out}")


@app.command(epilog=example("lmlab olmoe counts routing_counts.npz --out counts.json"))
def counts(
    file: Annotated[
        Path, typer.Argument(help="A .npz file of counts: MODEL/expert_counts [domains, layers, experts].")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="All figures as JSON.", show_default=False)] = None,
) -> None:
    """Measure load and specialization from counts of routed tokens, as those that were published with OLMoE."""
    from rich.table import Table

    from lmlab.files import write_json
    from lmlab.methods.olmoe.routing.counts import read_counts
    from lmlab.progress import console
    from lmlab.terminal import markup

    figures = {}
    for model, found in read_counts(file).items():
        load, special = found.load(), found.domain_specialization()
        title = markup("{}: {} experts", model, found.top_k_DLE.shape[2])
        table = Table(title=title, title_justify="left")
        for name in ("domain", "layer", "highest load", "lowest load", "entropy", "most frequent expert"):
            table.add_column(name, justify="left" if name == "domain" else "right")
        for d, domain in enumerate(found.domains):
            for place, layer in enumerate(found.layers):
                cells = [f"{load[name][d, place]:.3f}" for name in ("max_over_mean", "min_over_mean")]
                cells.append(f"{load['normalized_entropy'][d, place]:.3f}")
                cells.append("" if special is None else f"{special[d, place].max():.1%} of tokens")
                table.add_row(markup("{}", domain), str(layer), *cells)
        console.print(table)
        figures[model] = {
            "domains": found.domains,
            "layers": found.layers,
            "load": {name: values.tolist() for name, values in load.items()},
            "domain_specialization": None if special is None else special.tolist(),
        }
    if out is not None:
        write_json(out, figures)
        print(f"Figures: {out}")


@app.command(
    epilog=example(
        "lmlab olmoe report final.npz --earlier 10%=step-1000.npz --tokenizer models/OLMoE-1B-7B --out routing.html"
    )
)
@changes(TraceConfig, ("tokenizer",), "traced", {"tokenizer": "With it tokens are shown as text."})
def report(
    trace: TraceFile,
    traced: dict[str, Any],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("routing.html"),
    earlier: Earlier = None,
    step: Step = None,
    published: Annotated[
        Path | None, typer.Option(help="Folder with published_*.csv to draw beside.", show_default=False)
    ] = None,
) -> None:
    """Write a page with heat maps and curves."""
    from lmlab.methods.olmoe.report import routing_page
    from lmlab.methods.olmoe.routing.texts import decoder
    from lmlab.methods.olmoe.routing.trace import RoutingTrace

    final = RoutingTrace.load(trace, step)
    decode = decoder(traced["tokenizer"]) if traced else None
    page = routing_page(
        final, _earlier(earlier), published=published, decode=decode, title=f"What the routers of {trace.stem} do"
    )
    print(f"Page: {page.write(out)}")


@app.command(epilog=example("lmlab olmoe upcycle models/smollm2 models/smollm2-moe --num-experts 4 --top-k 2"))
@options(UpcycleConfig, num_experts=8, top_k=2)
def upcycle(
    source: Annotated[Path, typer.Argument(help="A dense model's directory, GGUF file, checkpoint, stage or run.")],
    target: Annotated[Path, typer.Argument(help="A directory that holds no model yet.")],
    settings: UpcycleConfig,
) -> None:
    """Make a mixture of experts from a dense model."""
    from lmlab.methods.olmoe.upcycling import upcycle as make
    from lmlab.models import convert
    from lmlab.runs import Model

    found = Model.find(source)
    sparse = make(found.load(), settings)
    done = convert(found.source, target, model=sparse)
    print(
        f"{done.parameters:,} parameters, {sparse.config.num_parameters(active=True):,} active, as {done.model_type}:"
        f" {target}"
    )
    if done.why_native is not None:
        print(done.why_native)


@app.command(
    name="convert",
    epilog=example(
        "lmlab olmoe convert checkpoints/olmo-step1000 models/olmoe", "lmlab olmoe convert DIR OUT --to olmo-core"
    ),
)
def convert_layout(
    source: Annotated[
        Path, typer.Argument(help="A checkpoint of OLMo or OLMo-core as safetensors, or for --to a model directory.")
    ],
    target: Annotated[Path, typer.Argument(help="A directory that holds no model yet.")],
    to: Annotated[str, typer.Option(help="hf, olmo or olmo-core.")] = "hf",
    verify: Annotated[
        bool, typer.Option(help="Compare the logits of what was written with those of transformers (hf).")
    ] = False,
) -> None:
    """Convert between the layouts of OLMo's training codes and Hugging Face directories."""
    from lmlab.methods.olmoe.layouts import read_olmo, write_olmo
    from lmlab.models import compare_with_transformers, save_pretrained
    from lmlab.runs import Model

    if to not in ("hf", "olmo", "olmo-core"):
        raise UserError(f"--to {to}: known are hf, olmo and olmo-core.")
    if (target / "model.safetensors").exists() or (target / "config.json").exists():
        raise UserError(f"'{target}' already holds a model.", "Name another directory, or remove this one.")
    if to != "hf":
        write_olmo(Model.find(source).load(), target, "olmo" if to == "olmo" else "olmo-core")
        print(f"Weights: {target}")
        return
    model = read_olmo(source)
    kind = save_pretrained(model, target)
    print(f"{model.config.num_parameters():,} parameters as {kind}: {target}")
    if verify:
        import torch

        ids = torch.randint(0, model.config.vocab_size, (2, 32), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            logits = model(ids).logits_BTV
        assert logits is not None
        print(f"Largest difference to the logits of transformers: {compare_with_transformers(target, ids, logits):.1e}")


@app.command(
    epilog=example(
        "lmlab olmoe ablate recipes/olmoe-ablations.yaml --texts corpus/ --only fine --only dense --out runs/ablations"
    )
)
@changes(AblationConfig, ("texts", "only", "workers", "backend", "gpus"))
def ablate(
    config: Annotated[Path, typer.Argument(help="The variants, a YAML file.")],
    changes: dict[str, Any],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Directory of the run; what is finished there is not done again.")
    ] = Path("runs/ablations"),
    set_: Set = None,
    dry_run: DryRun = False,
) -> None:
    """Train variants of a model with several seeds and compare them with significance."""
    from lmlab.config import apply_overrides
    from lmlab.files import read_yaml
    from lmlab.files.packaged import recipe_file
    from lmlab.methods.olmoe.stages import AblationResults, comparison_sentence
    from lmlab.runs import StageRecord

    settings = apply_overrides(read_yaml(recipe_file(config)), set_ or []) | changes
    stages = {"ablation": {"kind": "ablation", **settings}, "report": {"kind": "report", "title": "Design choices"}}
    run_stages(config.stem, stages, out, None, dry_run, redo=False)
    if not dry_run:
        results = StageRecord.finished_in(out / "ablation").read_results(AblationResults)
        for row in results.comparisons:
            if row["difference"] is not None:
                print(comparison_sentence(row))


def _earlier(named: list[str] | None) -> dict[str, RoutingTrace]:
    from lmlab.methods.olmoe.routing.trace import RoutingTrace

    found: dict[str, RoutingTrace] = {}
    for each in named or []:
        name, equals, path = each.partition("=")
        if not equals:
            raise UserError(
                f"--earlier {each}: expected NAME=FILE, or NAME=FILE:STEP for a file with several checkpoints."
            )
        file, _, step = path.partition(".npz:")
        found[name] = RoutingTrace.load(Path(f"{file}.npz"), step) if step else RoutingTrace.load(Path(path))
    return found


def _with_interval(figure: dict[str, list[float]], place: int) -> str:
    half = figure["half_width"]
    return f"{figure['value'][place]:.3f}" + (f" ± {half[place]:.3f}" if half and half[place] is not None else "")
