"""Transformer Programs: what the command line, recipes and the documentation's tables know of the method."""

from lmlab.plugins import Method

METHOD = Method(
    title="Transformer Programs",
    question="Which readable program does a transformer learn?",
    paper="Friedman et al. 2023",
    url="https://arxiv.org/abs/2306.01128",
    command="programs",
    cli="lmlab.methods.transformer_programs.cli:app",
    help="Transformers that are programs: train, export faithfully, verify, minimize, run and explain them.",
    page="methods/transformer_programs.md",
    published="hist 100 %, the program of other tasks 69.7 % where its model has 83.2 %",
    reached="",
    stages={"train_program": "lmlab.methods.transformer_programs.stages:TrainProgram"},
)
