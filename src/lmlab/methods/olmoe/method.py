"""Mixtures of experts: what the command line, recipes and the documentation's tables know of the method."""

from lmlab.plugins import Method

METHOD = Method(
    title="OLMoE",
    question="What do experts buy, and what does each of them do?",
    paper="Muennighoff et al. 2024",
    url="https://arxiv.org/abs/2409.02060",
    command="olmoe",
    cli="lmlab.methods.olmoe.cli:app",
    help="Mixtures of experts (OLMoE): trace and analyze routers, upcycle dense models, compare design choices.",
    page="methods/olmoe.md",
    published="fine-grained experts at toy scale 2.335 nats a byte (reference code)",
    reached="2.347",
    stages={
        "upcycle": "lmlab.methods.olmoe.stages:Upcycle",
        "routing": "lmlab.methods.olmoe.stages:Routing",
        "train_bytes": "lmlab.methods.olmoe.stages:TrainBytes",
        "ablation": "lmlab.methods.olmoe.stages:Ablation",
    },
)
