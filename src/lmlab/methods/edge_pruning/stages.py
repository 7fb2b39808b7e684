"""Stages of recipes: `circuit_examples` makes a task, `circuit_questions` makes one from questions, `circuit` finds a
circuit, measures it on examples of its own, and draws it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from lmlab.evals import read_questions
from lmlab.files import sha256_file, write_jsonl
from lmlab.methods.edge_pruning.commands.shared import with_constants_of
from lmlab.methods.edge_pruning.config import (
    CircuitConfig,
    CircuitExamplesConfig,
    CircuitQuestionsConfig,
    FindConfig,
    TaskOptions,
)
from lmlab.methods.edge_pruning.examples.load import load
from lmlab.methods.edge_pruning.examples.questions import pairs_of_questions
from lmlab.methods.edge_pruning.examples.tasks import generate
from lmlab.methods.edge_pruning.graph.circuit import Circuit
from lmlab.methods.edge_pruning.measures import Ends, areas, curve
from lmlab.methods.edge_pruning.report import circuit_page
from lmlab.methods.edge_pruning.search.find import find_circuit, ranking
from lmlab.progress import console
from lmlab.reports import Section
from lmlab.runs import Questions, Results, Stage, StageContext, Vocabulary

_EXAMPLES, _CIRCUIT = "examples.jsonl", "circuit.json"


class ExamplesResults(Results):
    """How many, and the first prompt."""

    examples: int
    first: str


class CircuitExamples(Stage[CircuitExamplesConfig, ExamplesResults]):
    """Writes examples.jsonl with all splits."""

    version = 2

    def run(self, config: CircuitExamplesConfig, context: StageContext) -> ExamplesResults:
        """Make the examples."""
        tokenizer = context.find(Vocabulary, "tokenizer").load()
        splits = config.splits.items()
        rows = [
            row
            for split, count in splits
            for row in generate(config.task, tokenizer, count, context.seed, split, config.shots)
        ]
        return ExamplesResults(examples=write_jsonl(context.directory / _EXAMPLES, rows), first=str(rows[0]["clean"]))

    def summary(self, results: ExamplesResults) -> str:
        """How many."""
        return f"{results.examples} examples, such as: {results.first}"


class CircuitQuestions(Stage[CircuitQuestionsConfig, ExamplesResults]):
    """Writes examples.jsonl from questions, such as those of a model's own task."""

    def run(self, config: CircuitQuestionsConfig, context: StageContext) -> ExamplesResults:
        """Make the examples."""
        tokenizer = context.find(Vocabulary, "tokenizer").load()
        questions = read_questions(context.find(Questions, "questions").path)
        rows = pairs_of_questions(questions, tokenizer, dict[str, int](config.splits.items()), config.tokens)
        first = tokenizer.decode(rows[0]["clean"])
        return ExamplesResults(examples=write_jsonl(context.directory / _EXAMPLES, rows), first=first)

    def summary(self, results: ExamplesResults) -> str:
        """How many."""
        return f"{results.examples} examples, such as: {results.first}"


class CircuitResults(Results):
    """Size of the circuit and its figures on the split `test`; others are those of `measure` and of the curve."""

    model_config = ConfigDict(extra="allow")

    edges: int
    edge_sparsity: float
    faithfulness: float
    curve: list[dict[str, Any]] | None = None


class FindCircuit(Stage[CircuitConfig, CircuitResults]):
    """Writes circuit.json; edge-pruning goes on from its checkpoints in search/."""

    version = 2

    def run(self, config: CircuitConfig, context: StageContext) -> CircuitResults:
        """Find and measure."""
        model, examples = context.inputs["model"], context.inputs["examples"]
        examples = examples / _EXAMPLES if examples.is_dir() else examples
        settings = FindConfig.model_validate({name: getattr(config, name) for name in FindConfig.model_fields})
        options = TaskOptions(
            data=examples, device=config.device, batch_size=config.batch_size, recompute=config.recompute
        )
        tasks, about = {}, dict[str, str]()
        for split in ("train", "test"):
            chosen = options.model_copy(update={"split": split})
            loaded = load(model, chosen)
            tasks[split], lines = loaded.task(config.ablation, config.graph, chosen)
            about |= {} if split == "test" else loaded.about()
        for line in lines:
            console.print(line)
        about |= {"model": str(config.model), "data_file_hash": sha256_file(examples)}
        place = context.directory / "search"
        test = tasks["test"]
        circuit = find_circuit(tasks["train"], settings, context.seed, place, config.force, about, test)
        test = with_constants_of(circuit, test)
        ends, measured = Ends.of(test), circuit.metrics["held_out"]
        found: dict[str, Any] = {**measured["circuit"], "n": measured["n"], "errors": measured["errors"]}
        if config.curve and circuit.scores_E is not None:
            rows = curve(test, ranking(config.method, circuit.scores_E), ends)
            found |= {"curve": rows, **areas(rows)}
        circuit.save(context.directory / _CIRCUIT)
        return CircuitResults(**{**found, "edges": circuit.num_edges, "edge_sparsity": circuit.sparsity})

    def summary(self, results: CircuitResults) -> str:
        """Size and faithfulness."""
        sparse = 100 * results.edge_sparsity
        return (
            f"{results.edges:,} edges, {sparse:.2f} % sparse, faithfulness {results.faithfulness:.3f} on the test"
            " split."
        )

    def report(self, config: CircuitConfig, results: CircuitResults, directory: Path) -> list[Section]:
        """The sections of a circuit's page."""
        circuit = Circuit.load(directory / _CIRCUIT)
        return list(circuit_page(circuit, {config.method: results.curve} if results.curve else None).sections)
