"""`lmlab tutor chat-format` and `chat-mix`: dialogues to tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import example
from lmlab.methods.tutor.config import FormatConfig, MixConfig

format_help = example("lmlab tutor chat-format tutorchat.jsonl --tokenizer models/llemma --max-len 32768 --out tokens")
mix_help = example(
    "lmlab tutor chat-mix --dialogues tutorchat.parquet --folders stem --metamath MetaMathQA-395K.json"
    " --tokenizer models/llemma --out mathmix"
)
TokenizerPlace = Annotated[str, typer.Option("--tokenizer", help="Whose tokens: a directory of a tokenizer or model.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the tokens, which the stage train reads.")]


@options(FormatConfig)
def chat_format(
    dialogues: Annotated[str, typer.Argument(help="Records of TutorChat: JSON lines, Parquet, or a folder of them.")],
    tokenizer: TokenizerPlace,
    settings: FormatConfig,
    out: Out,
) -> None:
    """Make tokens of dialogues, with a mask of what is learned: the published recipe, or a chat template."""
    _write(dialogues, tokenizer, settings, out)


@options(MixConfig)
def chat_mix(
    tokenizer: TokenizerPlace,
    settings: MixConfig,
    out: Out,
    dialogues: Annotated[
        str | None, typer.Option(help="Records of TutorChat: JSON lines, Parquet, or a folder.", show_default=False)
    ] = None,
) -> None:
    """Mix dialogues with questions of mathematics, as MathMix is: ten of them in one sequence, all of it learned."""
    _write(dialogues, tokenizer, settings, out)


def _write(dialogues: str | None, tokenizer: str, settings: Any, out: Path) -> None:
    from lmlab.methods.tutor.dialogues.mix import summary, write_dialogues
    from lmlab.runs import Vocabulary

    account = write_dialogues(dialogues, Vocabulary.find(tokenizer).load(), settings, out)
    print(f"{summary(account)}\nTokens: {out}")
