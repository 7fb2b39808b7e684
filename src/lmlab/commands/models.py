"""Commands that use one model: generate, chat, convert."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmlab.commandline.from_config import changes, options
from lmlab.commandline.model_place import takes_model
from lmlab.commandline.options import AllowPickle, Trust, example
from lmlab.errors import UserError
from lmlab.models.generation.config import GenerationConfig
from lmlab.runs.loading import Loading
from lmlab.words import counted

if TYPE_CHECKING:
    from lmlab.data import Tokenizer
    from lmlab.models import Transformer
    from lmlab.runs import Model

app = typer.Typer()


ModelDirectory = Annotated[
    Path, typer.Option("--model", help="A model's directory, GGUF file, checkpoint, stage or run.")
]
Adapter = Annotated[
    Path | None, typer.Option(help="LoRA adapters to fold into the weights, as peft writes them.", show_default=False)
]
# Varied enough to be worth reading, short enough to wait for on a CPU; an answer may be longer, and should stray less.
CONTINUING = {"max_new_tokens": 100, "temperature": 0.8, "top_p": 0.95}
_ANSWERING = {"max_new_tokens": 512, "temperature": 0.7, "top_p": 0.95}
_DRAWING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "draft_tokens", "seed")


def _usual(settings: dict[str, Any]) -> dict[str, str]:
    """What is done where an option is left out, said behind the help of the field."""
    own = "By default what the model's generation_config.json says, else"
    return {name: f"{own} {value}." for name, value in (settings | {"repetition_penalty": 1}).items()}


BeforeText = Annotated[
    str | None,
    typer.Option(
        "--soft-prompt",
        metavar="PLACE",
        help="What stands for a text that was compressed, and is read before this one: vectors or a memory, as a file"
        " or STORE/ID.",
        show_default=False,
    ),
]


@app.command(
    epilog=example(
        "lmlab generate --model runs/demo/model 'def main(' --max-new-tokens 60",
        "echo 'import ' | lmlab generate --model DIR -",
    )
)
@changes(GenerationConfig, ("max_new_tokens", *_DRAWING, "num_samples", "max_repetitions"), "asked", _usual(CONTINUING))
@options(Loading, "loading", only=("precision",))
def generate(
    prompts: Annotated[list[str], typer.Argument(help="Texts to continue; - reads one from standard input.")],
    model: ModelDirectory,
    asked: dict[str, Any],
    loading: Loading,
    adapter: Adapter = None,
    soft_prompt: BeforeText = None,
    trust: Trust = False,
    json_lines: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a sample, with log-probabilities.")
    ] = False,
) -> None:
    """Continue prompts with a model and print the texts."""
    import json

    from lmlab.hardware.threads import adapt
    from lmlab.models import find_context, stream
    from lmlab.stages.generate import behind, complete_texts, generation_config
    from lmlab.terminal import printable

    texts = [sys.stdin.read() if prompt == "-" else prompt for prompt in prompts]
    adapt()
    found, network, tokenizer = load_model(model, loading.precision, adapter)
    settings = generation_config(sampling(found, CONTINUING, asked), found, tokenizer)
    before = None if soft_prompt is None else find_context(soft_prompt, network, trust=trust)
    if len(texts) == settings.num_samples == 1 and not json_lines:
        ids = tokenizer.encode_prompt(texts[0]) if before is None else tokenizer.encode(texts[0])
        pieces = stream(network, ids, settings, tokenizer.decode, **behind(before))
        first = next(pieces, "")  # a prompt that is refused is not said
        print(texts[0], end="", flush=True)
        for piece in itertools.chain([first], pieces):
            print(printable(piece), end="", flush=True)
        print()
        return
    for number, (prompt, completions) in enumerate(
        zip(texts, complete_texts(network, tokenizer, texts, settings, before), strict=True)
    ):
        for each in completions:
            if json_lines:
                row = {
                    "prompt": prompt,
                    "completion": each.text,
                    "finish_reason": each.finish_reason,
                    "ids": each.ids,
                    "log_probs": each.log_probs,
                }
                print(json.dumps(row, ensure_ascii=False))
            else:
                print(
                    ("\n\n" if number or each is not completions[0] else "") + prompt + printable(each.text or ""),
                    end="",
                )
    if not json_lines:
        print()


@app.command(
    epilog=example(
        "lmlab chat models/smollm2", "lmlab chat models/smollm2 --system 'Answer in one sentence.' --temperature 0"
    )
)
@takes_model
@changes(GenerationConfig, ("max_new_tokens", *_DRAWING), "asked", _usual(_ANSWERING))
@options(Loading, "loading", only=("precision",))
def chat(
    model: Annotated[Path, typer.Argument(help="A model's directory, GGUF file, checkpoint, stage or run.")],
    asked: dict[str, Any],
    loading: Loading,
    adapter: Adapter = None,
    system: Annotated[str | None, typer.Option(help="What the model is told first.", show_default=False)] = None,
    soft_prompt: BeforeText = None,
    trust: Trust = False,
) -> None:
    """Talk to a model.

    Every line of input is a message; /reset starts afresh, /exit ends, Ctrl-C cuts an answer short.
    """
    from lmlab.commands.chat import Conversation
    from lmlab.hardware.threads import adapt
    from lmlab.models import find_context
    from lmlab.terminal import printable

    adapt()
    found, network, tokenizer = load_model(model, loading.precision, adapter)
    before = None if soft_prompt is None else find_context(soft_prompt, network, trust=trust)
    conversation = Conversation(network, tokenizer, chat_settings(found, network, tokenizer, asked), system, before)
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
    epilog=example(
        "lmlab convert SmolLM2-135M-Instruct.gguf models/smollm2 --check",
        "lmlab convert runs/demo/model models/demo --dtype bf16",
    )
)
def convert(
    source: Annotated[Path, typer.Argument(help="A model's directory, GGUF file, checkpoint, stage or run.")],
    target: Annotated[Path, typer.Argument(help="Directory (or GGUF file) to write; it must not hold a model.")],
    to: Annotated[str, typer.Option(help="hf, a Hugging Face directory, or gguf, one file for llama.cpp.")] = "hf",
    adapter: Adapter = None,
    dtype: Annotated[
        str, typer.Option(help="Type of the weights: fp32, bf16, fp16, or keep; for gguf also q8_0.")
    ] = "keep",
    max_shard_size: Annotated[str, typer.Option(help="Cut the weights into files of at most this size.")] = "5GB",
    allow_pickle: AllowPickle = False,
    check: Annotated[
        bool, typer.Option("--check", help="Compare the logits of the result with those of transformers.")
    ] = False,
) -> None:
    """Write any model that lmlab reads as a Hugging Face directory, or as a GGUF file, with its tokenizer."""
    import torch

    from lmlab.models import convert as convert_model
    from lmlab.runs import Model

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "keep": None}
    if to not in ("hf", "gguf"):
        raise UserError(f"Unknown format '{to}'.", "Use hf or gguf.")
    if dtype not in dtypes and not (to == "gguf" and dtype == "q8_0"):
        more = ", q8_0" if to == "gguf" else ""
        raise UserError(f"Unknown dtype '{dtype}'.", f"Use one of {', '.join(dtypes)}{more}.")
    if to == "gguf" and check:
        raise UserError("--check compares Hugging Face directories.", "Leave it out with --to gguf.")
    limit, found = _bytes(max_shard_size), Model.find(source)
    done = convert_model(
        found.source,
        target,
        dtypes[dtype] if to == "hf" else None,
        max_shard_bytes=limit,
        allow_pickle=allow_pickle,
        check=check,
        adapter=adapter,
        model=found.load() if found.form == "checkpoint" else None,
        gguf=None if to == "hf" else dtype,
    )
    compared = (
        "" if done.difference is None else f"; logits equal in transformers (largest difference {done.difference:.1e})"
    )
    print(f"{target}: {done.model_type}, {counted(done.parameters, 'parameters')}{compared}")
    if done.why_native is not None:
        print(done.why_native)


def sampling(found: Model, usual: dict[str, Any], given: dict[str, Any]) -> GenerationConfig:
    """What was asked for, else what the model's makers say, else what is usual.

    Raises:
        UserError: a setting is unknown or out of range.
    """
    from lmlab.config import validate

    asked = {key: value for key, value in given.items() if value is not None}
    return validate(GenerationConfig, usual | found.generation_defaults() | asked, "the settings")


def chat_settings(found: Model, network: Transformer, tokenizer: Tokenizer, given: dict[str, Any]) -> GenerationConfig:
    """Those of an answer in a conversation, of which the model's window leaves half for what was said before."""
    from lmlab.stages.generate import generation_config

    settings = sampling(found, _ANSWERING, given)
    most = min(settings.max_new_tokens, network.config.max_seq_len // 2)
    return generation_config(settings.model_copy(update={"max_new_tokens": most}), found, tokenizer)


def load_model(path: Path, precision: str, adapter: Path | None) -> tuple[Model, Transformer, Tokenizer]:
    """A model by its place, its network with adapters folded in, and its tokenizer."""
    from lmlab.hardware import reuse_memory, select_device, select_dtype
    from lmlab.hardware.threads import settle
    from lmlab.runs import Model

    device = select_device()
    select_dtype(precision, device)  # refuses a name before a model is looked for
    reuse_memory()
    settle()
    found = Model.find(path)
    return found, found.load_in(precision, device, adapter=adapter), found.tokenizer()


def _bytes(text: str) -> int:
    """A size such as 5GB or 200MB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if not found or float(found[1]) == 0:
        raise UserError(f"'{text}' is not a size.", "Write it as 5GB or 200MB.")
    return int(float(found[1]) * 1000 ** " KMGT".index(found[2].upper() or " "))
