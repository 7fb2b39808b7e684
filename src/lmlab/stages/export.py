"""The stage `export`: a Hugging Face directory, reloaded with `transformers` to check that the logits are equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import PositiveFloat

from lmlab.config import Config
from lmlab.data import Tokenizer
from lmlab.errors import LmlabError, UserError
from lmlab.models import compare_with_transformers, family_of, save_pretrained, why_no_family
from lmlab.progress import console
from lmlab.reports import Facts, Section
from lmlab.runs import Artifact, Model, ModelInput, Results, Stage, StageContext, Vocabulary
from lmlab.terminal import markup


class ExportConfig(Config):
    """Which model, and how large the difference of logits in fp32 may be."""

    model: ModelInput
    tolerance: PositiveFloat = 1e-4  # sums in another order differ by less, another network by much more
    check_text: str = "def main(arguments):\n    return 0\n"


class ExportResults(Results):
    """What was written, and how far its logits are from those of `transformers`."""

    model_type: str
    architecture: str
    largest_difference: float


class Export(Stage[ExportConfig, ExportResults]):
    """Writes hf/: config.json, generation_config.json, model.safetensors and the tokenizer."""

    gives: ClassVar[tuple[type[Artifact], ...]] = (
        Model,
        Vocabulary,
    )

    def run(self, config: ExportConfig, context: StageContext) -> ExportResults:
        """Export, reload with `transformers`, compare ids and logits."""
        source = context.find(Model, "model")
        model, tokenizer = source.load(), source.tokenizer()
        family = family_of(model.config)
        if family is None:
            raise UserError(
                why_no_family(model.config),
                "Remove the export stage, or change the model.",
            )
        directory = context.directory / "hf"
        model_type = save_pretrained(
            model, directory, tokens={"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
        )
        tokenizer.save(directory, model.config.max_seq_len)
        console.print(markup("  [dim]reloading with transformers"))
        inputs = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(config.check_text)]])
        with torch.no_grad():
            logits = model(inputs).logits_BTV
        assert logits is not None
        difference = compare_with_transformers(directory, inputs, logits)
        _compare_tokenizers(directory, tokenizer, config.check_text)
        if difference > config.tolerance:
            raise LmlabError(
                f"The exported model's logits differ by {difference:.2e} in transformers, more than"
                f" {config.tolerance:.0e}."
            )
        return ExportResults(model_type=model_type, architecture=family.language_model, largest_difference=difference)

    def summary(self, results: ExportResults) -> str:
        """The check's outcome."""
        return (
            f"{results.architecture}: logits equal in transformers (largest difference"
            f" {results.largest_difference:.1e})."
        )

    def report(self, config: ExportConfig, results: ExportResults, directory: Any) -> list[Section]:
        """The check's outcome."""
        facts = {
            "Architecture": results.architecture,
            "Largest logit difference": f"{results.largest_difference:.1e}",
        }
        intro = "The model as a Hugging Face directory, reloaded with transformers and compared in fp32."
        return [Section("Export", [Facts(facts | {"Directory": f"{directory.name}/hf"})], intro)]


def _compare_tokenizers(directory: Path, tokenizer: Tokenizer, text: str) -> None:
    from transformers import AutoTokenizer

    if list(AutoTokenizer.from_pretrained(directory)(text, add_special_tokens=False)["input_ids"]) != tokenizer.encode(
        text
    ):
        raise LmlabError("The exported tokenizer gives other ids in transformers.")
