"""Circuits: what the command line, recipes and the documentation's tables know of the method."""

from lmlab.plugins import Method

METHOD = Method(
    title="Edge Pruning",
    question="Which connections inside a model do a task?",
    paper="Bhaskar et al. 2024",
    url="https://arxiv.org/abs/2406.16778",
    command="circuits",
    cli="lmlab.methods.edge_pruning.cli:app",
    help="Circuits: which edges between the parts of a model do a task (Edge Pruning, ACDC, EAP, EAP-IG).",
    page="methods/edge_pruning.md",
    published="both compiled programs recovered exactly",
    reached="both, on 5 of 5 seeds",
    stages={
        "circuit_examples": "lmlab.methods.edge_pruning.stages:CircuitExamples",
        "circuit_questions": "lmlab.methods.edge_pruning.stages:CircuitQuestions",
        "circuit": "lmlab.methods.edge_pruning.stages:FindCircuit",
    },
)
