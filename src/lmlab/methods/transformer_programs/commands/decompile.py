"""`lmlab programs decompile`: a small language model as a program of averages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.model_place import takes_model
from lmlab.commandline.options import ModelPlace, example
from lmlab.methods.transformer_programs.config import DECOMPILED_ON, DecompileConfig, SequencesConfig


@takes_model
@options(SequencesConfig, "given", examples=DECOMPILED_ON)
@options(DecompileConfig, "how")
def decompile(
    model: ModelPlace,
    given: SequencesConfig,
    how: DecompileConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the program.")] = Path("decompiled"),
) -> None:
    """Read a small language model as a program of averages that answers as it does."""
    from lmlab.methods.transformer_programs.decompile.files import PYTHON, write_decompiled
    from lmlab.progress import console
    from lmlab.runs import Model

    manifest = write_decompiled(Model.find(model), given, how, out)
    paths = manifest["paths"]
    console.print(
        f"{paths['written']} paths, {paths['gated']} behind open gates, {paths['left']} in the program of"
        f" {manifest['lines']} lines ({manifest['cpu_seconds']:.0f} CPU-s)."
    )
    console.print(
        f"As the model: {manifest['match']:.2%} of places and {manifest['whole_sequences']:.1%} of sequences held back."
    )
    for name, figures in manifest["tests"].items():
        rest = ""
        if "model_accuracy" in figures:
            rest = (
                f"; right are the model {figures['model_accuracy']:.2%}, the program {figures['program_accuracy']:.2%},"
                f" the most common answer {figures['most_common']:.1%}"
            )
        console.print(f"{name}: {figures['match']:.2%} of places, {figures['whole_sequences']:.1%} of sequences{rest}.")
    if manifest["match"] < how.match:
        console.print(
            f"That is below the {how.match:.0%} asked for: read it as a part of what the model does.", style="yellow"
        )
    console.print(f"Program: {out / PYTHON}")


decompile_example = example(
    "lmlab programs decompile runs/majority/model --data majority.jsonl --test longer.jsonl --out majority_program/"
)
