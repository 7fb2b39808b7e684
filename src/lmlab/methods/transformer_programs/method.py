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
    published="sort: program 99.83 %",
    reached="99.94 %, 140 CPU seconds for 8 seeds",
    stages={
        "train_program": "lmlab.methods.transformer_programs.stages:TrainProgram",
        "decompile": "lmlab.methods.transformer_programs.stages:Decompile",
    },
)
