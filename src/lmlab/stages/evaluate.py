"""The stage `evaluate`: bits per byte by domain and ranked accuracy of a model, beside the baselines."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from lmlab.config import Config
from lmlab.data import Tokenizer, read_documents
from lmlab.errors import UserError
from lmlab.evals import bits_per_byte, document_bits, option_bits, read_items, score_ranking
from lmlab.files import write_jsonl
from lmlab.hardware import select_device
from lmlab.models import Transformer, from_pretrained
from lmlab.reports import Figure, Note, Section, Table, bar_chart
from lmlab.runs import Input, Stage, StageContext, read_record

Figures = dict[str, dict[str, Any]]


class EvaluateConfig(Config):
    """Which model on what.

    Attributes:
        model: a model's directory, or the stage that trained it.
        window: the most tokens the model sees at once in scoring documents.
        untrained: also measure the same network with fresh weights.
        baselines: a stage `baselines`, to set its figures beside the model's.
    """

    model: Input
    documents: Input | None = None
    split: Literal["train", "heldout"] = "heldout"
    task: Input | None = None
    baselines: Input | None = None
    window: PositiveInt = 256
    untrained: bool = False
    device: str = "auto"


class Evaluate(Stage[EvaluateConfig]):
    """Writes documents-NAME.jsonl and questions-NAME.jsonl (NAME: model, untrained): one row for each document and question."""

    config_type: ClassVar[type[Config]] = EvaluateConfig

    def run(self, config: EvaluateConfig, context: StageContext) -> dict[str, Any]:
        """Measure the model, then the untrained one; what a killed attempt measured is kept."""
        directory = model_directory(context.inputs["model"])
        model, tokenizer = from_pretrained(directory, select_device(config.device)), Tokenizer.load(directory)
        if config.window > model.config.max_seq_len:
            raise UserError(f"window {config.window} is longer than the model's max_seq_len {model.config.max_seq_len}.", "Lower it.")
        measured: Figures = {"model": self._measure("model", model, tokenizer, config, context)}
        if config.untrained:
            measured["untrained"] = self._measure("untrained", model.initialize(context.seed), tokenizer, config, context)
        chance = measured["model"].pop("chance", None)
        if config.baselines is not None:
            measured |= read_record(context.inputs["baselines"])["results"]["baselines"]
        return {"measured": measured, "chance": chance}

    def _measure(self, name: str, model: Transformer, tokenizer: Tokenizer, config: EvaluateConfig, context: StageContext) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if config.documents is not None:
            found["bits_per_byte"] = context.once(f"{name}-bits-per-byte", lambda: self._bits(name, model, tokenizer, config, context))
        if config.task is not None:
            found |= context.once(f"{name}-accuracy", lambda: self._rank(name, model, tokenizer, context))
            if name != "model":
                found.pop("chance")
        return found

    def _bits(self, name: str, model: Transformer, tokenizer: Tokenizer, config: EvaluateConfig, context: StageContext) -> dict[str, Any]:
        path = context.inputs["documents"]
        documents = list(read_documents(path / f"{config.split}.jsonl" if path.is_dir() else path))
        bits = document_bits(model, tokenizer, [document.text for document in documents], config.window, f"perplexity, {name}")
        rows = [
            {"id": document.id, "domain": document.domain, "bits": value, "bytes": len(document.text.encode())}
            for document, value in zip(documents, bits, strict=True)
        ]
        write_jsonl(context.directory / f"documents-{name}.jsonl", rows)
        by_domain: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            by_domain[str(row["domain"])].append(row)
        return {domain: asdict(bits_per_byte([r["bits"] for r in found], [r["bytes"] for r in found])) for domain, found in sorted(by_domain.items())}

    def _rank(self, name: str, model: Transformer, tokenizer: Tokenizer, context: StageContext) -> dict[str, Any]:
        path = context.inputs["task"]
        items = read_items(path / "task.jsonl" if path.is_dir() else path)
        result = score_ranking(items, option_bits(model, tokenizer, items, f"questions, {name}"))
        write_jsonl(context.directory / f"questions-{name}.jsonl", result.rows)
        return {"accuracy": {key: asdict(value) for key, value in result.accuracy.items()}, "chance": result.chance}

    def summary(self, results: dict[str, Any]) -> str:
        """The model's figures."""
        found = results["measured"]["model"]
        parts = [f"{domain} {value['value']:.3f} bits per byte" for domain, value in found.get("bits_per_byte", {}).items()]
        if "accuracy" in found:
            value = found["accuracy"]["all"]
            parts.append(f"ranked accuracy {value['value']:.1%} ± {value['standard_error'] or 0:.1%} (chance {results['chance']['all']:.0%})")
        return "; ".join(parts)

    def headline(self, results: dict[str, Any]) -> dict[str, str]:
        """Bits per byte by domain, and accuracy."""
        found = results["measured"]["model"]
        facts = {f"Bits per byte, {domain}": f"{value['value']:.3f}" for domain, value in found.get("bits_per_byte", {}).items()}
        if "accuracy" in found:
            facts["Ranked accuracy"] = f"{found['accuracy']['all']['value']:.1%}"
        return facts

    def report(self, config: EvaluateConfig, results: dict[str, Any], directory: Path) -> list[Section]:
        """Tables and figures with standard errors."""
        blocks: list[Any] = []
        measured = results["measured"]
        bits = {name: found["bits_per_byte"] for name, found in measured.items() if "bits_per_byte" in found}
        if bits:
            blocks += [_verdict(bits), *_comparison(bits, "bits per byte", None, 3)]
        accuracy = {name: found["accuracy"] for name, found in measured.items() if "accuracy" in found}
        if accuracy:
            chance = results["chance"]["all"]
            blocks += _comparison(accuracy, "accuracy", ("chance", chance), 3)
        intro = (
            "Measured on held-out text that no training document repeats. "
            "± is one standard error: over documents for bits per byte, over questions for accuracy."
        )
        return [Section("Evaluation", blocks, intro)]


def model_directory(path: Path) -> Path:
    """The model below a train stage's directory, or the path itself."""
    return path / "model" if (path / "model" / "config.json").exists() else path


def _verdict(bits: Figures) -> Note:
    worse = [
        f"{name} on {domain} ({value['value']:.3f} against {bits['model'][domain]['value']:.3f})"
        for name, found in bits.items()
        if name != "model"
        for domain, value in found.items()
        if value["value"] <= bits["model"][domain]["value"]
    ]
    if worse:
        return Note("The model needs more bits than: " + "; ".join(worse) + ".", "warning")
    return Note("The model needs fewer bits than every baseline on every domain.", "good")


def _comparison(figures: Figures, title: str, reference: tuple[str, float] | None, digits: int) -> list[Any]:
    domains = list(figures["model"])
    groups = {name: [found[domain]["value"] for domain in domains] for name, found in figures.items() if all(domain in found for domain in domains)}
    errors = {name: [figures[name][domain]["standard_error"] or 0.0 for domain in domains] for name in groups}
    rows = [[name, *(_cell(found.get(domain), digits) for domain in domains)] for name, found in figures.items()]
    caption = f"{title[0].upper()}{title[1:]} by domain."
    align: list[Literal["left", "right"]] = ["left"]
    align += ["right"] * len(domains)
    return [
        Figure(bar_chart(domains, groups, errors, title, reference), caption + " Bars show one standard error.", caption),
        Table(["", *domains], rows, caption, highlight_row=0, align=align),
    ]


def _cell(value: dict[str, Any] | None, digits: int) -> str:
    if value is None:
        return "-"
    error = value["standard_error"]
    return f"{value['value']:.{digits}f}" + (f" ± {error:.{digits}f}" if error else "")
