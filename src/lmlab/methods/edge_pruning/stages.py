"""Stages of recipes: `circuit_examples` makes a task, `circuit_questions` makes one from questions, `circuit` finds a
circuit, measures it on examples of its own, and draws it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from lmlab.config import part_of
from lmlab.evals import read_questions
from lmlab.files import sha256_file, write_jsonl
from lmlab.methods.edge_pruning.commands.shared import with_constants_of
from lmlab.methods.edge_pruning.config import (
    CircuitConfig,
    CircuitExamplesConfig,
    CircuitQuestionsConfig,
    FindConfig,
    ReadingOptions,
    TaskOptions,
)
from lmlab.methods.edge_pruning.examples.load import load_to_search
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
    """Size of the circuit and its figures; others are those of `measure` and of the curve.

    Attributes:
        held_out: the figures are those of examples that the search did not see.
        converged: whether the search has, if that is known.
    """

    model_config = ConfigDict(extra="allow")

    edges: int
    edge_sparsity: float
    faithfulness: float
    curve: list[dict[str, Any]] | None = None
    held_out: bool = True
    converged: bool | None = None


class FindCircuit(Stage[CircuitConfig, CircuitResults]):
    """Writes circuit.json; edge-pruning goes on from its checkpoints in search/."""

    version = 2

    def run(self, config: CircuitConfig, context: StageContext) -> CircuitResults:
        """Find and measure."""
        settings, given = part_of(FindConfig, config), part_of(ReadingOptions, config).model_dump()
        examples = context.inputs.get("examples")
        if examples is not None and examples.is_dir():
            examples = examples / _EXAMPLES
        if (tokenizer := context.inputs.get("tokenizer")) is not None:
            given["tokenizer"] = str(tokenizer)
        options = TaskOptions(**given, data=examples)
        loaded = load_to_search(context.inputs["model"], options)
        if loaded.dropped:
            console.print(f"{loaded.dropped} examples were left out, as their token counts differ.")
        searched, lines = loaded.task(config.ablation, config.graph, options)
        for line in lines:
            console.print(line)
        held_out = loaded.held_out_task(searched, options)
        about = {**loaded.about(), "model": config.model}
        if examples is not None:
            about["data_file_hash"] = sha256_file(examples)
        place = context.directory / "search"
        circuit = find_circuit(searched, settings, context.seed, place, config.force, about, held_out)
        measured = circuit.metrics.get("held_out") or circuit.metrics
        found: dict[str, Any] = {**measured["circuit"], "n": measured["n"], "errors": measured["errors"]}
        if config.curve and circuit.scores_E is not None:
            task = with_constants_of(circuit, held_out or searched)
            rows = curve(task, ranking(config.method, circuit.scores_E), Ends.of(task))
            found |= {"curve": rows, **areas(rows)}
        circuit.save(context.directory / _CIRCUIT)
        about_it = {"held_out": held_out is not None, "converged": circuit.about["converged"]}
        return CircuitResults(**{**found, "edges": circuit.num_edges, "edge_sparsity": circuit.sparsity, **about_it})

    def summary(self, results: CircuitResults) -> str:
        """Size and faithfulness."""
        sparse = 100 * results.edge_sparsity
        where = "examples that the search did not see" if results.held_out else "the examples of the search"
        return f"{results.edges:,} edges, {sparse:.2f} % sparse, faithfulness {results.faithfulness:.3f} on {where}."

    def report(self, config: CircuitConfig, results: CircuitResults, directory: Path) -> list[Section]:
        """The sections of a circuit's page."""
        circuit = Circuit.load(directory / _CIRCUIT)
        return list(circuit_page(circuit, {config.method: results.curve} if results.curve else None).sections)
