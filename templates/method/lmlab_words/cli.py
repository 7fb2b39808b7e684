"""`lmlab words`. Heavy imports happen inside the commands, so that help is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmlab.commandline.options import example

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Keeps `count` a command of its own while it is the only one."""


@app.command(epilog=example("lmlab words count runs/demo/documents --most 5"))
def count(
    documents: Annotated[Path, typer.Argument(help="A stage that collects, or a file of documents.")],
    most: Annotated[int, typer.Option(min=1, help="How many words are told.")] = 20,
) -> None:
    """Tell the most frequent words of documents."""
    from lmlab.data import read_documents
    from lmlab.runs import Documents
    from lmlab_words.config import WordsConfig
    from lmlab_words.counting import most_frequent

    texts = (each.text for each in read_documents(Documents.find(documents).split("train")))
    for word, number in most_frequent(texts, WordsConfig(most=most)):
        print(f"{number:8,}  {word}")
