"""What the commands `lmlab poison` share: their options, and the retriever that those name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmlab.errors import UserError

if TYPE_CHECKING:
    from lmlab.methods.corpus_poisoning.setup import Retriever

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
DEPTHS = (1, 3, 5, 10, 20, 50, 100)

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
