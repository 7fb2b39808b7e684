"""Model ladders: what the command line, recipes and the documentation's tables know of the method."""

from lmlab.plugins import Method

METHOD = Method(
    title="Model ladders",
    question="What will a large model reach on my tasks, before I pay for it?",
    paper="Bhagia et al. 2024",
    url="https://arxiv.org/abs/2412.04403",
    command="ladder",
    cli="lmlab.methods.ladder.cli:app",
    help="Model ladders: train small models, predict a large one's task accuracy, with intervals.",
    page="methods/ladder.md",
    published="3.82 points off the 7B model's accuracies",
    reached="1.98",
    stages={
        "ladder": "lmlab.methods.ladder.stages:Ladder",
        "ladder_outcome": "lmlab.methods.ladder.stages:LadderOutcome",
    },
)
