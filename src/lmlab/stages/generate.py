"""The stage `generate`: samples from a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from lmlab.data import Tokenizer
from lmlab.hardware import select_device
from lmlab.models import Completion, GenerationConfig, Memory, SoftPrompt, Transformer, generate
from lmlab.progress import console
from lmlab.reports import Sample, Section
from lmlab.runs import Model, ModelInput, Results, Stage, StageContext
from lmlab.runs.loading import Loading
from lmlab.terminal import markup

_OF_MODELS = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens"}
"""What a model's makers may recommend."""


class GenerateConfig(GenerationConfig, Loading):
    """Which model continues what, and how.

    What is not given is what the model's `generation_config.json` says, else temperature 0.8 and top_p 0.95.

    Attributes:
        seed: added to that of the recipe.
        eos_ids: further tokens that end a text, beside those of the model.
    """

    model: ModelInput
    prompts: list[str] = Field(min_length=1)
    temperature: float = Field(default=0.8, ge=0)
    top_p: float | None = Field(default=0.95, gt=0, le=1)


class Completed(Results):
    """A prompt and one continuation."""

    prompt: str
    completion: str | None
    finish_reason: str


class GenerateResults(Results):
    """The draws of each prompt, in order, and how they were drawn."""

    samples: list[Completed]
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float


class Generate(Stage[GenerateConfig, GenerateResults]):
    """Writes only its results."""

    version: ClassVar[int] = 4

    def depends_on(self, config: GenerateConfig, promised: Mapping[str, Any]) -> Any:
        """Which settings are given: the others are the model's."""
        return sorted(_OF_MODELS & config.model_fields_set)

    def run(self, config: GenerateConfig, context: StageContext) -> GenerateResults:
        """Sample continuations of each prompt."""
        model = context.find(Model, "model")
        network = model.load_in(config.precision, select_device(config.device))
        tokenizer = model.tokenizer()
        own = {key: value for key, value in model.generation_defaults().items() if key not in config.model_fields_set}
        settings = generation_config(config.model_copy(update=own), model, tokenizer, context.seed)
        console.print(markup("  [dim]{} prompts, up to {} tokens each", len(config.prompts), settings.max_new_tokens))
        found = complete_texts(network, tokenizer, config.prompts, settings)
        pairs = [
            (prompt, each) for prompt, completions in zip(config.prompts, found, strict=True) for each in completions
        ]
        return GenerateResults(
            samples=[
                Completed(prompt=prompt, completion=each.text, finish_reason=each.finish_reason)
                for prompt, each in pairs
            ],
            **settings.model_dump(include=_OF_MODELS - {"max_new_tokens"}),
        )

    def summary(self, results: GenerateResults) -> str:
        """How many."""
        return f"{len(results.samples)} samples."

    def report(self, config: GenerateConfig, results: GenerateResults, directory: Any) -> list[Section]:
        """The samples."""
        penalty = None if results.repetition_penalty == 1 else results.repetition_penalty
        shown = {"top-p": results.top_p, "top-k": results.top_k, "min-p": results.min_p, "repetition penalty": penalty}
        limits = [f"{name} {value}" for name, value in shown.items() if value is not None]
        intro = (
            ", ".join([f"Temperature {results.temperature}", *limits])
            + ". The first draws of each prompt, not chosen by hand."
        )
        return [
            Section(
                "Samples",
                [Sample(sample.prompt, sample.completion or "") for sample in results.samples],
                intro,
                rank=3,
            )
        ]


def generation_config(
    settings: GenerationConfig, model: Model, tokenizer: Tokenizer, seed: int = 0
) -> GenerationConfig:
    """The settings with the end tokens of a model added, and a seed added to theirs."""
    ends = {*settings.eos_ids, *model.end_token_ids(), tokenizer.eos_id}
    data = settings.model_dump(include=set(GenerationConfig.model_fields))
    return GenerationConfig(**data | {"eos_ids": tuple(ends), "seed": settings.seed + seed})


def complete_texts(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: list[str],
    config: GenerationConfig,
    before: SoftPrompt | Memory | None = None,
) -> list[list[Completion]]:
    """Completions of each prompt, which is read as the beginning of a document, or as what goes on behind a context."""
    encode = tokenizer.encode_prompt if before is None else tokenizer.encode
    ids = [encode(prompt) for prompt in prompts]
    return generate(model, ids, config, decode=tokenizer.decode, **behind(before))


def behind(before: SoftPrompt | Memory | None) -> dict[str, Any]:
    """What `generate` and `stream` are told of what stands before a text."""
    return {"memory" if isinstance(before, Memory) else "soft_prompt": before}
