"""The stage `generate`: samples from a model."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, PositiveInt

from lmlab.config import Config
from lmlab.data import Tokenizer
from lmlab.hardware import select_device
from lmlab.models import from_pretrained, generate
from lmlab.progress import console
from lmlab.reports import Sample, Section
from lmlab.runs import Input, Stage, StageContext
from lmlab.stages.evaluate import model_directory


class GenerateConfig(Config):
    """Which model continues what, and how."""

    model: Input
    prompts: list[str] = Field(min_length=1)
    max_new_tokens: PositiveInt = 100
    temperature: float = Field(default=0.8, ge=0)
    top_k: PositiveInt | None = None
    top_p: float | None = Field(default=0.95, gt=0, le=1)
    device: str = "auto"


class Generate(Stage[GenerateConfig]):
    """Writes only its results."""

    config_type: ClassVar[type[Config]] = GenerateConfig

    def run(self, config: GenerateConfig, context: StageContext) -> dict[str, Any]:
        """Sample one continuation of each prompt."""
        directory = model_directory(context.inputs["model"])
        model, tokenizer = from_pretrained(directory, select_device(config.device)), Tokenizer.load(directory)
        return {"samples": sample_texts(model, tokenizer, config, context.seed)}

    def summary(self, results: dict[str, Any]) -> str:
        """How many."""
        return f"{len(results['samples'])} samples."

    def report(self, config: GenerateConfig, results: dict[str, Any], directory: Any) -> list[Section]:
        """The samples."""
        limits = [f"{name} {value}" for name, value in (("top-p", config.top_p), ("top-k", config.top_k)) if value is not None]
        intro = ", ".join([f"Temperature {config.temperature}", *limits]) + ". The first draw of each prompt, not chosen by hand."
        return [Section("Samples", [Sample(sample["prompt"], sample["completion"]) for sample in results["samples"]], intro)]


def sample_texts(model: Any, tokenizer: Tokenizer, config: GenerateConfig, seed: int) -> list[dict[str, str]]:
    """Prompts with their continuations."""
    console.print(f"  [dim]{len(config.prompts)} samples of up to {config.max_new_tokens} tokens")
    ids = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in config.prompts]
    new = generate(
        model,
        ids,
        config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        seed=seed,
        eos_id=tokenizer.eos_id,
    )
    return [{"prompt": prompt, "completion": tokenizer.decode(row)} for prompt, row in zip(config.prompts, new, strict=True)]
