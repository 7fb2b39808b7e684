"""`lmlab tutor chat-format` and `chat-mix`: dialogues to tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import OnlyTell, example
from lmlab.methods.tutor.config import (
    ChatGenerateConfig,
    EndpointConfig,
    FormatConfig,
    MixConfig,
    TutorDialoguesConfig,
    TutorMixConfig,
)

generate_help = example(
    "lmlab tutor chat-generate textbooks --scheme rule --per-chapter 3 --out dialogues",
    "lmlab tutor chat-generate textbooks --teacher openai:gpt-4o-mini --key-env OPENAI_API_KEY"
    " --base-url https://api.openai.com/v1 --prices prices.yaml --max-cost-usd 5 --out dialogues",
)
format_help = example("lmlab tutor chat-format tutorchat.jsonl --tokenizer models/llemma --max-len 32768 --out tokens")
mix_help = example(
    "lmlab tutor chat-mix --dialogues tutorchat.parquet --folders stem --metamath MetaMathQA-395K.json"
    " --tokenizer models/llemma --out mathmix"
)
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the tokens, which the stage train reads.")]


@options(ChatGenerateConfig)
@options(EndpointConfig, into="endpoint")
@options(TutorDialoguesConfig, "who", only=("teacher", "student"))
def chat_generate(
    chapters: Annotated[str, typer.Argument(help="Chapters: a file, folder or glob; DOMAIN/BOOK/... in a folder.")],
    settings: ChatGenerateConfig,
    endpoint: EndpointConfig,
    who: TutorDialoguesConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the dialogues.")],
    dry_run: OnlyTell = False,
) -> None:
    """Write dialogues about chapters: two models talk, one writes all, or sentences are quoted by rule."""
    from lmlab.methods.tutor.endpoints import endpoint_of
    from lmlab.methods.tutor.writing.write import estimate_writing, told, write_about

    made = [None if each is None else endpoint_of(each, endpoint) for each in (who.teacher, who.student)]
    if dry_run and made[0] is not None:
        requests, found = estimate_writing(chapters, settings, made[0], out)
        print(f"At most {requests:,} requests. The first of each dialogue: {found}")
        return
    for line in told(write_about(chapters, settings, made[0], out, made[1], redact=endpoint.redact)):
        print(line)
    print(f"Dialogues: {out}")


@options(TutorMixConfig, "whose", only=("tokenizer",))
@options(FormatConfig)
def chat_format(
    dialogues: Annotated[str, typer.Argument(help="Records of TutorChat: JSON lines, Parquet, or a folder of them.")],
    whose: TutorMixConfig,
    settings: FormatConfig,
    out: Out,
) -> None:
    """Make tokens of dialogues, with a mask of what is learned: the published recipe, or a chat template."""
    _write(dialogues, whose.tokenizer, settings, out)


@options(TutorMixConfig, "of_what", only=("tokenizer", "dialogues"))
@options(MixConfig)
def chat_mix(
    of_what: TutorMixConfig,
    settings: MixConfig,
    out: Out,
) -> None:
    """Mix dialogues with questions of mathematics, as MathMix is: ten of them in one sequence, all of it learned."""
    _write(of_what.dialogues, of_what.tokenizer, settings, out)


def _write(dialogues: str | None, tokenizer: str, settings: Any, out: Path) -> None:
    from lmlab.methods.tutor.dialogues.mix import summary, write_dialogues
    from lmlab.runs import Vocabulary

    account = write_dialogues(dialogues, Vocabulary.find(tokenizer).load(), settings, out)
    print(f"{summary(account)}\nTokens: {out}")
