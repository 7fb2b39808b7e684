"""What the commands `lmlab poison` share: their options, and the retriever that those name."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from lmlab.commandline.from_config import options
from lmlab.methods.corpus_poisoning.config import PRECISION
from lmlab.retrieval.config import CollectionConfig, EncoderConfig

if TYPE_CHECKING:
    from lmlab.methods.corpus_poisoning.setup import Retriever, Target

T = TypeVar("T", bound=Callable[..., Any])

# the reference's spellings, so that its command lines run here
_DATA = {"data": ("--data", "-d", "--dataset", "--eval_dataset")}
_ENCODER = {
    "encoder": ("--encoder", "-e", "--model_code", "--eval_model_code"),
    "max_length": ("--max-length", "--max_seq_length"),
}

Passages = Annotated[
    Path, typer.Option("--passages", "-p", "--advp_path", help="Crafted passages: a folder, or adversarial.jsonl.")
]
Queries = Annotated[
    str | None,
    typer.Option(
        "--queries",
        help="Other queries on the same corpus, a file or folder; an attack needs no judgments then.",
        show_default=False,
    ),
]
Gate = Annotated[Path, typer.Option("--gate", "-g", help="Folder of a fitted gate.")]


def collection_options(exclude: Collection[str] = (), **defaults: Any) -> Callable[[T], T]:
    """Options of a collection, into `collection`. One that holds crafted documents is refused."""
    return options(CollectionConfig, "collection", (*exclude, "redteam"), _DATA, **defaults)


def encoder_options(exclude: Collection[str] = (), **defaults: Any) -> Callable[[T], T]:
    """Options of a retriever, into `which`."""
    return options(EncoderConfig, "which", exclude, _ENCODER, **{"precision": PRECISION, **defaults})


def retriever(which: EncoderConfig) -> Retriever:
    """What options name."""
    from lmlab.methods.corpus_poisoning.attack.craft import EncoderSpec
    from lmlab.methods.corpus_poisoning.setup import Retriever

    return Retriever(EncoderSpec(which.encoder, which.arguments()), which.cache, which.precision)


def target_of(which: EncoderConfig, collection: CollectionConfig) -> Target:
    """A collection as a retriever sees it, both named by options."""
    from lmlab.methods.corpus_poisoning.setup import Target

    return Target.load(retriever(which), collection.data, collection.split, collection.ignore_missing)


def documents_of(which: EncoderConfig, collection: CollectionConfig) -> Target:
    """The documents of a collection as a retriever sees them: neither queries nor judgments need to be there."""
    from lmlab.methods.corpus_poisoning.setup import Target

    return Target.of_documents(retriever(which), collection.data)
