"""The command line: `lmlab COMMAND`. Heavy imports happen inside the commands, so that help is instant."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab import __version__
from lmlab.errors import EXIT_INTERRUPTED, Interrupted, LmlabError, UserError, from_os_error

app = typer.Typer(
    name="lmlab",
    help="A laboratory for language models: from raw text to a model that you understand and can defend.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

data_app = typer.Typer(no_args_is_help=True, help="Look at data.")
app.add_typer(data_app, name="data")
launch_app = typer.Typer(no_args_is_help=True, help="Start recipes on clusters: one on many machines, or many at once.")
app.add_typer(launch_app, name="launch")

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Directory of the run \\[default: runs/NAME].", show_default=False)]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; may be repeated.", show_default=False)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan with estimates and stop.")]
Processes = Annotated[int | None, typer.Option(min=1, help="With --dry-run: plan for so many processes (GPUs).", show_default=False)]
PerMachine = Annotated[int, typer.Option(min=1, help="With --processes: how many of them a machine has.")]
TextField = Annotated[str, typer.Option(help="Dotted field that holds the text of a record.")]
IdField = Annotated[str | None, typer.Option(help="Field with the id of a record, by default its place.", show_default=False)]
DomainField = Annotated[str | None, typer.Option(help="Field with the domain of a record, for figures by domain.", show_default=False)]
Redo = Annotated[bool, typer.Option("--redo", help="Run changed stages again; what they wrote before is moved aside.")]


def _example(*lines: str) -> str:
    return "Example:\n\n" + "\n\n".join(f"  [bold]{line}[/bold]" for line in lines)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        print(f"lmlab {__version__}")
        raise typer.Exit


@app.command(epilog=_example("lmlab demo", "lmlab demo --set model.trainer.steps=100 --out runs/short"))
def demo(out: Out = None, set_: Set = None, dry_run: DryRun = False, redo: Redo = False) -> None:
    """Run recipes/demo.yaml: from the standard library's text to a trained, measured, exported model and a report."""
    _run(_demo_recipe(), out, set_, dry_run, redo)


@app.command(epilog=_example("lmlab run recipes/demo.yaml --dry-run", "lmlab run mine.yaml --set seed=1 --out runs/mine"))
def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    out: Out = None,
    set_: Set = None,
    dry_run: DryRun = False,
    redo: Redo = False,
    processes: Processes = None,
    per_machine: PerMachine = 8,
) -> None:
    """Run a recipe. Finished stages are skipped; a run that was cut off goes on where it was. `torchrun -m lmlab run ...` shares the work."""
    with _planning_for(processes, per_machine, dry_run):
        _run(recipe, out, set_, dry_run, redo)


@app.command(
    epilog=_example("lmlab tokenize 'books/*.txt' --vocab-size 8192 --out runs/books", "lmlab tokenize data.jsonl.gz --tokenizer runs/demo/tokenizer")
)
def tokenize(
    sources: Annotated[
        list[str], typer.Argument(help="Files, globs, folders or URLs of text, JSON lines, Parquet, Arrow or MDS; .gz, .bz2, .xz, .zst are unpacked.")
    ],
    tokenizer: Annotated[Path | None, typer.Option(help="Directory of a tokenizer; without it one is trained.", show_default=False)] = None,
    vocab_size: Annotated[int, typer.Option(help="Tokens of the trained tokenizer.")] = 4096,
    text_field: TextField = "text",
    id_field: IdField = None,
    domain_field: DomainField = None,
    out: Out = None,
    set_: Set = None,
    dry_run: DryRun = False,
    redo: Redo = False,
) -> None:
    """Collect, deduplicate and tokenise your own text: the first stages of a recipe, without writing one."""
    from lmlab.data import source_settings

    fields = _fields(text_field, id_field, domain_field)
    stages: dict[str, Any] = {"documents": {"kind": "collect", "sources": [source_settings(path, fields) for path in sources]}}
    if tokenizer is None:
        stages["tokenizer"] = {"kind": "train_tokenizer", "documents": "documents", "vocab_size": vocab_size}
    for split in ("train", "heldout"):
        name = "tokens" if split == "train" else "heldout_tokens"
        stages[name] = {"kind": "tokenize", "documents": "documents", "tokenizer": str(tokenizer or "tokenizer"), "split": split}
    _run_stages("tokenize", stages, out, set_, dry_run, redo)


@app.command(epilog=_example("lmlab train train.yaml --out runs/mine", "lmlab train train.yaml --set trainer.steps=1000 --dry-run"))
def train(
    config: Annotated[Path, typer.Argument(help="The configuration of a train stage, a YAML file: tokens, tokenizer, model, seq_len, trainer.")],
    out: Out = None,
    set_: Set = None,
    dry_run: DryRun = False,
    redo: Redo = False,
    processes: Processes = None,
    per_machine: PerMachine = 8,
) -> None:
    """Train a language model on tokenised text: one stage of a recipe, without writing one. `torchrun -m lmlab train ...` shares the work."""
    from lmlab.config import apply_overrides, load_yaml

    settings = apply_overrides(load_yaml(config), set_ or [])
    seed = settings.pop("seed", 0)
    with _planning_for(processes, per_machine, dry_run):
        _run_stages(config.stem, {"model": {"kind": "train", **settings}}, out, None, dry_run, redo, seed)


@app.command(name="eval", epilog=_example("lmlab eval --model runs/demo/model --documents runs/demo/documents --task runs/demo/questions/task.jsonl"))
def evaluate(
    model: Annotated[Path, typer.Option(help="Directory of a model: a Hugging Face directory, or a train stage.")],
    documents: Annotated[Path | None, typer.Option(help="Documents to measure bits per byte on.", show_default=False)] = None,
    task: Annotated[Path | None, typer.Option(help="Ranked-classification task, JSON lines.", show_default=False)] = None,
    window: Annotated[int, typer.Option(min=2, help="Most tokens the model sees at once.")] = 256,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory of the run, by default one for these arguments.", show_default=False)
    ] = None,
    dry_run: DryRun = False,
    redo: Redo = False,
) -> None:
    """Measure a model: bits per byte by domain and ranked accuracy, with standard errors."""
    if documents is None and task is None:
        raise UserError("Nothing to measure.", "Give --documents, --task or both.")
    from lmlab.files import sha256_json

    settings: dict[str, Any] = {"kind": "evaluate", "model": str(model), "window": window}
    settings |= {key: str(value) for key, value in (("documents", documents), ("task", task)) if value is not None}
    stages = {"evaluation": settings, "report": {"kind": "report", "title": f"Evaluation of {model}"}}
    _run_stages(f"eval-{sha256_json(settings)[:8]}", stages, out, None, dry_run, redo)


ModelDirectory = Annotated[Path, typer.Option("--model", help="Directory of a model.")]
Adapter = Annotated[Path | None, typer.Option(help="LoRA adapters to fold into the weights, as peft writes them.", show_default=False)]
Temperature = Annotated[float, typer.Option(min=0, help="0 is greedy.")]
TopK = Annotated[int | None, typer.Option(min=1, help="Sample among the k most probable tokens.", show_default=False)]
TopP = Annotated[float, typer.Option(min=0.001, max=1, help="Sample among the tokens that hold this probability.")]
MinP = Annotated[float | None, typer.Option(min=0, max=1, help="Sample among tokens with this share of the greatest one.", show_default=False)]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="Text that ends the answer; may be repeated.", show_default=False)]
Precision = Annotated[str, typer.Option(help="Type of the weights: fp32, bf16, or auto, the faster one here.")]


@app.command(
    epilog=_example("lmlab generate --model runs/demo/model 'def main(' --max-new-tokens 60", "echo 'import ' | lmlab generate --model DIR -")
)
def generate(
    prompts: Annotated[list[str], typer.Argument(help="Texts to continue; - reads one from standard input.")],
    model: ModelDirectory,
    adapter: Adapter = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to add.")] = 100,
    temperature: Temperature = 0.8,
    top_k: TopK = None,
    top_p: TopP = 0.95,
    min_p: MinP = None,
    num_samples: Annotated[int, typer.Option(min=1, help="Continuations of each prompt.")] = 1,
    stop: Stop = None,
    max_repetitions: Annotated[
        int | None, typer.Option(min=2, help="End a text whose tail is one block so many times in a row.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    precision: Precision = "fp32",
    json_lines: Annotated[bool, typer.Option("--json", help="Print one JSON object a sample, with log-probabilities.")] = False,
) -> None:
    """Continue prompts with a model and print the texts."""
    import json

    from lmlab.chat import printable
    from lmlab.models import GenerationConfig, stream
    from lmlab.stages.generate import complete_texts, generation_config

    texts = [sys.stdin.read() if prompt == "-" else prompt for prompt in prompts]
    directory, network, tokenizer = _load_model(model, precision, adapter)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        num_samples=num_samples,
        stop=tuple(stop or ()),
        max_repetitions=max_repetitions,
        seed=seed,
    )
    settings = generation_config(settings, directory, tokenizer)
    if len(texts) == num_samples == 1 and not json_lines:
        print(texts[0], end="", flush=True)
        for piece in stream(network, tokenizer.encode_prompt(texts[0]), settings, tokenizer.decode):
            print(printable(piece), end="", flush=True)
        print()
        return
    for number, (prompt, completions) in enumerate(zip(texts, complete_texts(network, tokenizer, texts, settings), strict=True)):
        for each in completions:
            if json_lines:
                row = {"prompt": prompt, "completion": each.text, "finish_reason": each.finish_reason, "ids": each.ids, "log_probs": each.log_probs}
                print(json.dumps(row, ensure_ascii=False))
            else:
                print(("\n\n" if number or each is not completions[0] else "") + prompt + printable(each.text or ""), end="")
    if not json_lines:
        print()


@app.command(epilog=_example("lmlab chat --model models/smollm2", "lmlab chat --model models/smollm2 --system 'Answer in one sentence.'"))
def chat(
    model: ModelDirectory,
    adapter: Adapter = None,
    system: Annotated[str | None, typer.Option(help="What the model is told first.", show_default=False)] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 512,
    temperature: Temperature = 0.7,
    top_k: TopK = None,
    top_p: TopP = 0.95,
    min_p: MinP = None,
    stop: Stop = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    precision: Precision = "fp32",
) -> None:
    """Talk to a model. Every line of input is a message; /reset starts afresh, /exit ends, Ctrl-C cuts an answer short."""
    from lmlab.chat import Conversation, printable
    from lmlab.models import GenerationConfig
    from lmlab.stages.generate import generation_config

    directory, network, tokenizer = _load_model(model, precision, adapter)
    settings = GenerationConfig(
        max_new_tokens=min(max_new_tokens, network.config.max_seq_len // 2),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        stop=tuple(stop or ()),
        seed=seed,
    )
    conversation = Conversation(network, tokenizer, generation_config(settings, directory, tokenizer), system)
    at_terminal = sys.stdin.isatty()
    while True:
        if at_terminal:
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "/exit":
            break
        if line.strip() == "/reset":
            conversation.reset()
            continue
        if not line.strip():
            continue
        try:
            for piece in conversation.reply(line.strip()):
                print(printable(piece), end="", flush=True)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            if not at_terminal:
                raise
        print()


@app.command(
    epilog=_example(
        "lmlab convert SmolLM2-135M-Instruct.gguf models/smollm2 --check",
        "lmlab convert runs/demo/model models/demo --dtype bf16",
    )
)
def convert(
    source: Annotated[Path, typer.Argument(help="A Hugging Face directory, a train stage, a training checkpoint, or a GGUF file.")],
    target: Annotated[Path, typer.Argument(help="Directory to write; it must not hold a model.")],
    adapter: Adapter = None,
    dtype: Annotated[str, typer.Option(help="Type of the weights: fp32, bf16, fp16, or keep.")] = "keep",
    max_shard_size: Annotated[str, typer.Option(help="Cut the weights into files of at most this size.")] = "5GB",
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Also read pytorch_model.bin, as plain weights only.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Compare the logits of the result with those of transformers.")] = False,
) -> None:
    """Write any model that lmlab reads as a Hugging Face directory: safetensors, configuration, tokenizer."""
    import torch

    from lmlab.models import convert as convert_model
    from lmlab.stages.evaluate import model_directory
    from lmlab.stages.start import Start

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "keep": None}
    if dtype not in dtypes:
        raise UserError(f"Unknown dtype '{dtype}'.", f"Use one of {', '.join(dtypes)}.")
    limit = _bytes(max_shard_size)
    directory, model = model_directory(source), None
    if (source / "state.json").exists():
        start = Start.find(source)
        directory, model = start.tokenizer_directory, start.load()
    done = convert_model(
        directory, target, dtypes[dtype], max_shard_bytes=limit, allow_pickle=allow_pickle, check=check, adapter=adapter, model=model
    )
    found = "" if done.difference is None else f"; logits equal in transformers (largest difference {done.difference:.1e})"
    print(f"{target}: {done.model_type}, {done.parameters:,} parameters{found}")


@app.command(epilog=_example("lmlab report runs/demo"))
def report(run: Annotated[Path, typer.Argument(help="Directory of a finished run.")]) -> None:
    """Write a run's report.html again from what its stages stored."""
    from lmlab.runs import Recipe, plan_stages
    from lmlab.stages.report import write_report

    if not (run / "recipe.yaml").exists():
        raise UserError(f"'{run}' is not the directory of a run (recipe.yaml is missing).")
    recipe = Recipe.load(run / "recipe.yaml")
    stages = [each for each in plan_stages(recipe, run) if not each.entry.stage.reads_all_stages]
    titles = [each.config.title for each in recipe.stages if each.kind == "report"]  # type: ignore[attr-defined]
    print(write_report(titles[0] if titles else recipe.name, run, stages))


@data_app.command(
    name="inspect",
    epilog=_example("lmlab data inspect runs/demo/tokens --out page.html", "lmlab data inspect 's3://bucket/*.parquet' --text-field content"),
)
def data_inspect(
    path: Annotated[str, typer.Argument(help="Tokenised shards, what a stage collect wrote, or any source: file, glob, folder or URL.")],
    tokenizer: Annotated[Path | None, typer.Option(help="Count tokens of text by this tokenizer.", show_default=False)] = None,
    documents: Annotated[int, typer.Option(min=0, help="How many documents to show.")] = 5,
    text_field: TextField = "text",
    id_field: IdField = None,
    domain_field: DomainField = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write a page there.", show_default=False)] = None,
) -> None:
    """Show documents, tokens, lengths, domains, and what is set aside and why."""
    from rich.console import Console

    from lmlab.data import Tokenizer
    from lmlab.stages.inspect import inspect_data, print_inspection, write_inspection

    fields = _fields(text_field, id_field, domain_field)
    found = inspect_data(path, Tokenizer.load(tokenizer) if tokenizer else None, documents, fields)
    print_inspection(found, Console(highlight=False))
    if out is not None:
        print(f"Page: {write_inspection(found, out)}")


@launch_app.command(
    name="slurm",
    epilog=_example("lmlab launch slurm recipes/demo.yaml --nodes 8 --out runs/big > job.sh", "lmlab launch slurm x.yaml --repeat 4 --output job.sh"),
)
def launch_slurm(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="Processes of a machine, one a GPU; 0 for one process without a GPU.")] = 8,
    cpus_per_gpu: Annotated[int, typer.Option(min=1, help="Cores for each process.")] = 8,
    time: Annotated[str, typer.Option(help="Limit of a job; two minutes before it a checkpoint is written.")] = "24:00:00",
    repeat: Annotated[int, typer.Option(min=1, help="Jobs one after the other, each going on where the last one stopped.")] = 1,
    partition: Annotated[str | None, typer.Option(help="As the cluster calls it.", show_default=False)] = None,
    account: Annotated[str | None, typer.Option(help="As the cluster calls it.", show_default=False)] = None,
    setup: Annotated[str | None, typer.Option(help="Line of shell before the start, such as 'source venv/bin/activate'.", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option(help="Write the script there, not to standard output.", show_default=False)] = None,
    out: Out = None,
    set_: Set = None,
) -> None:
    """Write a submission script that runs a recipe on many machines; submit it with sbatch."""
    from lmlab.files import write_text
    from lmlab.runs import Recipe
    from lmlab.stages.slurm import SlurmJob

    name = Recipe.load(recipe, set_ or []).name
    directory = (out or Path("runs") / name).resolve()
    settings = [part for override in set_ or [] for part in ("--set", override)]
    command = ["run", str(recipe.resolve()), "--out", str(directory), *settings]
    job = SlurmJob(name, command, directory.parent, nodes, gpus_per_node, cpus_per_gpu, time, repeat, partition, account, setup)
    if output is None:
        print(job.script(), end="")
    else:
        write_text(output, job.script())
        print(f"{output}: submit it with sbatch {output}")


@launch_app.command(
    name="sweep",
    epilog=_example(
        "lmlab launch sweep recipes/demo.yaml --vary seed=0,1,2 --out runs/seeds",
        "lmlab launch sweep x.yaml --vary model.trainer.optimizer.learning_rate=1e-3,3e-3 --backend ray --gpus 1 --workers 16",
    ),
)
def launch_sweep(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    vary: Annotated[list[str], typer.Option("--vary", metavar="KEY=VALUE,VALUE,...", help="Values of a key; all combinations are run.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory that gets a run for each combination.")] = Path("runs/sweep"),
    workers: Annotated[int, typer.Option(min=1, help="Runs at once.")] = 1,
    backend: Annotated[str, typer.Option(help="processes: on this machine; ray: on the cluster of RAY_ADDRESS.")] = "processes",
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each run, for Ray.")] = 0,
    set_: Set = None,
    dry_run: DryRun = False,
) -> None:
    """Run a recipe many times with different settings. Finished runs are skipped, those that were cut off go on."""
    from rich.console import Console
    from rich.table import Table

    from lmlab.runs import Recipe
    from lmlab.stages.sweep import plan_sweep, run_sweep

    if backend not in ("processes", "ray"):
        raise UserError(f"Unknown backend '{backend}'.", "Use processes or ray.")
    runs = plan_sweep(vary, out)
    for each in runs:
        Recipe.load(recipe, [*(set_ or []), *each.overrides])
    if dry_run:
        print("\n".join(f"{each.directory}  {' '.join(each.overrides)}" for each in runs))
        return
    rows = run_sweep(recipe, set_ or [], runs, out, workers, backend, gpus)  # type: ignore[arg-type]
    table = Table("run", "result")
    for each, row in zip(runs, rows, strict=True):
        stages = Recipe.load(each.directory / "recipe.yaml").stages
        told = [stage.stage.summary(row["results"][stage.name]) for stage in stages if stage.kind in ("train", "evaluate")]
        table.add_row(each.name, "\n".join(told) or "done")
    Console().print(table)


@app.command(epilog=_example("lmlab doctor"))
def doctor() -> None:
    """Show versions, hardware, measured speed of matrix products, and which extras are installed."""
    import importlib.util

    import torch
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from lmlab.hardware import environment, gemm_flops, select_device
    from lmlab.progress import short
    from lmlab.reports import format_bytes

    found = environment()
    table = Table(show_header=False)
    for key in ("lmlab", "python", "platform", "processor", "cores"):
        table.add_row(key, str(found[key]))
    table.add_row("memory", format_bytes(found["memory_bytes"]) if found["memory_bytes"] else "unknown")
    table.add_row("GPUs", ", ".join(found["gpus"]) or "none")
    device = select_device()
    for dtype in (torch.float32, torch.bfloat16):
        table.add_row(f"{str(dtype).removeprefix('torch.')} products on {device}", f"{short(gemm_flops(str(device), dtype))}FLOP/s")
    for name, version in found["packages"].items():
        table.add_row(name, version)
    extras = {
        "data": ("datasketch", "zstandard", "pyarrow"),
        "hf": ("transformers",),
        "gguf": ("transformers", "gguf", "accelerate"),
        "s3": ("s3fs",),
        "track": ("tensorboard", "wandb"),
        "ray": ("ray",),
    }
    for extra, modules in extras.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        told = f"missing {', '.join(missing)}: pip install 'lmlab[{extra}]'" if missing else "installed"
        table.add_row(f"extra '{extra}'", escape(told))
    Console().print(table)


@contextmanager
def _planning_for(processes: int | None, per_machine: int, dry_run: bool) -> Iterator[None]:
    """Make a plan as one process of many would, without them."""
    from lmlab.distributed import World, imagine

    if processes is None:
        yield
        return
    if not dry_run:
        raise UserError("--processes belongs to --dry-run; to start several processes use torchrun.", "torchrun --nproc-per-node N -m lmlab run ...")
    local = min(per_machine, processes)
    if processes % local:
        raise UserError(f"--processes {processes} is not a multiple of --per-machine {local}.")
    with imagine(World(0, processes, 0, local)):
        yield


def _demo_recipe() -> Path:
    package = Path(__file__).parent
    candidates = (package / "recipes" / "demo.yaml", package.parents[1] / "recipes" / "demo.yaml")
    return next(path for path in candidates if path.exists())


def _load_model(path: Path, precision: str, adapter: Path | None) -> Any:
    """The directory of a model, the model with its adapters folded in, and its tokenizer."""
    from lmlab.data import Tokenizer
    from lmlab.hardware import reuse_memory, select_device, select_dtype
    from lmlab.models import from_pretrained, load_lora, remove_lora
    from lmlab.stages.evaluate import model_directory

    if precision not in ("fp32", "bf16", "auto"):
        raise UserError(f"Unknown precision '{precision}'.", "Use fp32, bf16 or auto.")
    reuse_memory()
    directory, device = model_directory(path), select_device()
    network = from_pretrained(directory, device, select_dtype(precision, device))
    if adapter is not None:
        load_lora(network, adapter)
        remove_lora(network, merge=True)
    return directory, network, Tokenizer.load(directory)


def _bytes(text: str) -> int:
    """A size such as 5GB or 200MB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if not found or float(found[1]) == 0:
        raise UserError(f"'{text}' is not a size.", "Write it as 5GB or 200MB.")
    return int(float(found[1]) * 1000 ** " KMGT".index(found[2].upper() or " "))


def _fields(text_field: str, id_field: str | None, domain_field: str | None) -> dict[str, str]:
    found = {"text_field": text_field, "id_field": id_field, "domain_field": domain_field}
    return {name: value for name, value in found.items() if value is not None}


def _run(path: Path, out: Path | None, overrides: list[str] | None, dry_run: bool, redo: bool) -> None:
    from lmlab.runs import Recipe

    _execute(Recipe.load(path, overrides or []), out, dry_run, redo)


def _run_stages(name: str, stages: dict[str, Any], out: Path | None, overrides: list[str] | None, dry_run: bool, redo: bool, seed: int = 0) -> None:
    from lmlab.config import apply_overrides
    from lmlab.runs import Recipe

    data = apply_overrides({"name": name, "seed": seed, "stages": stages}, [f"stages.{override}" for override in overrides or []])
    _execute(Recipe.parse(data, "the command line"), out, dry_run, redo)


def _execute(recipe: Any, out: Path | None, dry_run: bool, redo: bool) -> None:
    from lmlab.distributed import world
    from lmlab.hardware import reuse_memory
    from lmlab.progress import console
    from lmlab.runs import print_plan, run_recipe

    directory = out or Path("runs") / recipe.name
    if dry_run:
        print_plan(recipe, directory)
        return
    reuse_memory()
    console.quiet = not world().is_main
    run_recipe(recipe, directory, redo)
    report_path = directory / "report.html"
    console.print(f"Results: {directory / 'results.json'}" + (f"\nReport: {report_path}" if report_path.exists() else ""))


def main() -> None:
    """Run the command line; errors for the user are printed without a traceback."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app(standalone_mode=True)
    except LmlabError as error:
        _fail(error)
    except KeyboardInterrupt:
        _fail(Interrupted("Interrupted.", "Run the same command again to go on."))
    except BrokenPipeError:
        os._exit(0)
    except OSError as error:
        _fail(from_os_error(error))


def _terminate(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _fail(error: LmlabError) -> None:
    kind = "stopped" if error.exit_code == EXIT_INTERRUPTED else "error"
    rank = os.environ.get("RANK", "0")
    print(f"{kind}{'' if rank == '0' else f' (process {rank})'}: {error}", file=sys.stderr)
    raise SystemExit(error.exit_code)


if __name__ == "__main__":
    main()
