"""Commands that run stages: demo, run, tokenize, train, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import (
    DryRun,
    Out,
    PerMachine,
    Processes,
    Redo,
    Set,
    example,
    planning_for,
    print_table,
    run_recipe_file,
    run_stages,
)
from lmlab.data.sources.reading.fields import ReadingOptions
from lmlab.data.vocabulary_size import VocabularySize
from lmlab.errors import UserError

app = typer.Typer()


@app.command(epilog=example("lmlab demo", "lmlab demo --set model.trainer.steps=100 --out runs/short"))
def demo(out: Out = None, set_: Set = None, dry_run: DryRun = False, redo: Redo = False) -> None:
    """Run recipes/demo.yaml: from the standard library's text to a trained, measured, exported model and a report."""
    run_recipe_file(Path("demo"), out, set_, dry_run, redo)


@app.command(
    epilog=example(
        "lmlab run demo-quality --out runs/demo --dry-run", "lmlab run mine.yaml --set seed=1 --out runs/mine"
    )
)
def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file, or the name of one that comes with lmlab.")],
    out: Out = None,
    set_: Set = None,
    dry_run: DryRun = False,
    redo: Redo = False,
    processes: Processes = None,
    per_machine: PerMachine = 8,
) -> None:
    """Run a recipe.

    Finished stages are skipped; a run that was cut off goes on where it was. `torchrun -m lmlab run ...` shares the
    work.
    """
    with planning_for(processes, per_machine, dry_run):
        run_recipe_file(recipe, out, set_, dry_run, redo)


@app.command(name="recipes", epilog=example("lmlab recipes", "lmlab recipes chat-smollm2 --out mine.yaml"))
def recipes(
    name: Annotated[str | None, typer.Argument(help="One of them, to be written out.", show_default=False)] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File to write, by default standard output.", show_default=False),
    ] = None,
) -> None:
    """List the recipes that come with lmlab, or write one out to change it. `lmlab run NAME` runs it as it is."""
    from lmlab.files import write_text
    from lmlab.files.packaged import packaged_recipes, recipe_file, told

    if name is None:
        from rich.table import Table

        table = Table("name", "what it is for")
        for each, path in packaged_recipes().items():
            table.add_row(each, told(path))
        print_table(table)
        return
    text = packaged_recipes().get(Path(name).stem, Path(name))
    content = recipe_file(text).read_text("utf-8")
    if out is None:
        print(content, end="")
    elif out.exists():
        raise UserError(f"'{out}' is there already.", "Choose another file, or remove it.")
    else:
        write_text(out, content)
        print(f"{out}: change it and run it with lmlab run {out}")


@app.command(
    epilog=example(
        "lmlab tokenize 'books/*.txt' --vocab-size 8192 --out runs/books",
        "lmlab tokenize data.jsonl.gz --tokenizer runs/demo/tokenizer",
        "lmlab tokenize data/prolong-64K --ids-of models/llama-3 --tokenizer models/mine --out runs/mine",
    )
)
@options(ReadingOptions, "fields")
@options(VocabularySize, "trained")
def tokenize(
    sources: Annotated[
        list[str],
        typer.Argument(
            help=(
                "Files, globs, folders or URLs of text, JSON lines, Parquet, Arrow, MDS, WebDataset; compressed or not."
            )
        ),
    ],
    fields: ReadingOptions,
    trained: VocabularySize,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Directory of a tokenizer; without it one is trained.", show_default=False)
    ] = None,
    ids_of: Annotated[
        Path | None,
        typer.Option(
            help="The sources are token ids, MDS or JSON lines with input_ids, that this tokenizer made.",
            show_default=False,
        ),
    ] = None,
    out: Out = None,
    set_: Set = None,
    dry_run: DryRun = False,
    redo: Redo = False,
) -> None:
    """Collect, deduplicate and tokenize your own text: the first stages of a recipe.

    Token ids, such as shards and packed sequences, are tokenized again, with all of their documents.
    """
    from lmlab.data import KEEP_ALL, source_settings
    from lmlab.runs import Vocabulary

    if ids_of is None:
        chosen = [source_settings(path, fields.given()) for path in sources]
    else:
        made_by = str(Vocabulary.find(ids_of).path)
        chosen = [{"kind": "tokenized", "path": path, "tokenizer": made_by} for path in sources]
    again = all(source["kind"] == "tokenized" for source in chosen)  # it was chosen from and split before
    stages: dict[str, Any] = {"documents": {"kind": "collect", "sources": chosen, **(KEEP_ALL if again else {})}}
    if tokenizer is None:
        stages["tokenizer"] = {"kind": "train_tokenizer", "documents": "documents", "vocab_size": trained.vocab_size}
    for part in ("train",) if again else ("train", "heldout"):
        name = "tokens" if part == "train" else "heldout_tokens"
        stages[name] = {
            "kind": "tokenize",
            "documents": "documents",
            "tokenizer": str(tokenizer or "tokenizer"),
            "split": part,
        }
    run_stages("tokenize", stages, out, set_, dry_run, redo)


@app.command(
    epilog=example(
        "lmlab train train.yaml --out runs/mine", "lmlab train train.yaml --set trainer.steps=1000 --dry-run"
    )
)
def train(
    config: Annotated[
        Path,
        typer.Argument(
            help="The configuration of a train stage, a YAML file: tokens, tokenizer, model, seq_len, trainer."
        ),
    ],
    out: Out = None,
    set_: Set = None,
    dry_run: DryRun = False,
    redo: Redo = False,
    processes: Processes = None,
    per_machine: PerMachine = 8,
) -> None:
    """Train a language model on tokenized text: one stage of a recipe, without writing one.

    `torchrun -m lmlab train ...` shares the work.
    """
    name, stages, seed = train_stages(config, set_ or [])
    with planning_for(processes, per_machine, dry_run):
        run_stages(name, stages, out, None, dry_run, redo, seed)


@app.command(epilog=example("lmlab report runs/demo"))
def report(run: Annotated[Path, typer.Argument(help="Directory of a finished run.")]) -> None:
    """Write a run's report.html again from what its stages stored; their sources need not be there."""
    from dataclasses import replace

    from lmlab.runs import Recipe, stored_stages
    from lmlab.stages.report import write_report

    recipe = Recipe.stored(run)
    reported = tuple(each for each in recipe.stages if not each.stage.reads_all_stages)
    titles = [each.config.title for each in recipe.stages if each.kind == "report"]  # type: ignore[attr-defined]
    stages = stored_stages(replace(recipe, stages=reported), run)
    print(write_report(titles[0] if titles else recipe.name, run, stages))


def train_stages(config: Path | Mapping[str, Any], overrides: Sequence[str]) -> tuple[str, dict[str, Any], int]:
    """The name, the stages and the seed of a run that trains one model by a configuration."""
    from lmlab.config import apply_overrides
    from lmlab.files import read_yaml

    name, given = ("train", dict(config)) if isinstance(config, Mapping) else (config.stem, read_yaml(config))
    settings = apply_overrides(given, list(overrides))
    seed = settings.pop("seed", 0)
    return name, {"model": {"kind": "train", **settings}}, seed
