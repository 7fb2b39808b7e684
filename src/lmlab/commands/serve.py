"""The command `lmlab serve`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lmlab.commandline.from_config import changes, options
from lmlab.commandline.model_place import takes_model
from lmlab.commandline.options import Trust, example
from lmlab.commands.models import Adapter, load_model
from lmlab.errors import UserError, missing_extra
from lmlab.models.generation.config import GenerationConfig
from lmlab.runs.loading import Loading
from lmlab.words import counted

app = typer.Typer()


@app.command(
    epilog=example(
        "lmlab serve models/smollm2",
        "lmlab serve runs/demo --name demo --port 8001",
        "lmlab serve models/minilm --embeddings",
        "KEY=... lmlab serve models/smollm2 --host 0.0.0.0 --key-env KEY",
    )
)
@takes_model
@changes(GenerationConfig, ("draft_tokens",), "asked")
@options(Loading, "loading", only=("precision",))
def serve(
    model: Annotated[Path, typer.Argument(help="A model's directory, GGUF file, checkpoint, stage or run.")],
    asked: dict[str, Any],
    loading: Loading,
    name: Annotated[
        str | None, typer.Option(help="Name of the model in requests \\[default: the directory's].", show_default=False)
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; by default only this machine reaches it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any that is free.")] = 8000,
    key_env: Annotated[
        str | None, typer.Option(help="Environment variable with the key that requests must bring.", show_default=False)
    ] = None,
    allow_anyone: Annotated[
        bool, typer.Option("--allow-anyone", help="Take requests from other machines without a key.")
    ] = False,
    adapter: Adapter = None,
    chat_template: Annotated[
        str | None,
        typer.Option(help="tulu, or a Jinja file, in place of the tokenizer's own chat template.", show_default=False),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most continuations computed at once \\[default: 16, on a GPU 128].", show_default=False
        ),
    ] = None,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Most requests that wait; beyond that they are refused for a while.")
    ] = 128,
    embeddings: Annotated[
        bool,
        typer.Option("--embeddings", help="Serve vectors of texts (/v1/embeddings); encoders always do."),
    ] = False,
    context: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PLACE",
            help='Vectors that requests may ask for as "context": NAME: a file, or STORE/ID; may be repeated.',
            show_default=False,
        ),
    ] = None,
    trust: Trust = False,
    max_body: Annotated[float, typer.Option(min=0.001, help="Longest body of a request in MB.")] = 8.0,
) -> None:
    """Serve a model by the OpenAI protocol: chat and completions, streamed or whole, in one running batch; or an
    encoder: vectors of texts.

    Ctrl-C stops it.
    """
    try:
        import lmlab.endpoints.server.run  # noqa: F401 (the package's face is lazy: this loads what may be missing)
        from lmlab.endpoints import server
    except ModuleNotFoundError as error:
        if error.name in ("starlette", "uvicorn", "h11"):
            raise missing_extra(error.name, "lmlab serve") from None
        raise
    from dataclasses import replace

    from lmlab.data import ChatConfig, chat_tokenizer
    from lmlab.endpoints.engine.served import ServedModel
    from lmlab.hardware.threads import adapt
    from lmlab.models import Memory, find_context

    config = replace(server.server_config(host, key_env, allow_anyone), max_body_bytes=int(max_body * 1e6))
    listener = server.bind(host, port)
    if embeddings or (model / "modules.json").is_file():
        if asked:
            raise UserError("--draft-tokens is for models that write texts, and this one gives vectors of them.")
        from lmlab.endpoints.server.embeddings import ServedEncoder
        from lmlab.hardware import select_device
        from lmlab.retrieval import load_encoder

        encoder = load_encoder(model, str(select_device()))
        told = ServedEncoder(name or model.resolve().name, encoder, "bf16" if loading.precision == "bf16" else "fp32")

        def open_(address: str) -> None:
            text = f"Serving vectors of '{told.name}' at {address} ({encoder.dim} dimensions). Ctrl-C stops."
            print(text, file=sys.stderr, flush=True)

        server.serve(told, listener, config, open_)
        print("Stopped.", file=sys.stderr)
        return
    adapt()
    found, network, tokenizer = load_model(model, loading.precision, adapter)
    tokenizer = chat_tokenizer(tokenizer, ChatConfig(template=chat_template))
    contexts = {}
    for each in context or ():
        called, equals, place = each.partition("=")
        if not equals or not called.strip() or called.strip() in contexts:
            raise UserError(f"--context {each}: expected NAME=PLACE, each name once.")
        found_there = find_context(place, network, trust=trust)
        if isinstance(found_there, Memory):
            raise UserError(
                f"--context {each}: a memory of keys and values cannot join a running batch, as vectors can.",
                "Serve vectors (lmlab compress text, encode), or read the memory with lmlab generate or chat.",
            )
        contexts[called.strip()] = found_there
    served = ServedModel(
        name or model.resolve().name,
        network,
        tokenizer,
        found.end_token_ids(),
        found.generation_defaults() | asked,
        max_batch,
        max_queue,
        contexts,
    )

    def ready(address: str) -> None:
        print(
            f"Serving '{served.name}' at {address} ({counted(served.max_seq_len, 'tokens')} of context). Ctrl-C stops.",
            file=sys.stderr,
            flush=True,
        )

    server.serve(served, listener, config, ready)
    print("Stopped.", file=sys.stderr)
