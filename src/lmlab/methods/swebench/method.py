"""SWE-bench: what the command line, recipes and the documentation's tables know of the method."""

from lmlab.plugins import Method

METHOD = Method(
    title="SWE-bench",
    question="Can a model resolve real issues of a repository?",
    paper="Jimenez et al. 2024",
    url="https://arxiv.org/abs/2310.06770",
    command="swe",
    cli="lmlab.methods.swebench.cli:app",
    help="Issue-resolving benchmarks from any repository: build, run patches in a sandbox, grade (SWE-bench).",
    page="methods/swebench.md",
    published="verdicts of `swebench` 5.0.2 on 518 logs",
    reached="the same on all 518",
    extras=("swe",),
    stages={
        "swe_infer": "lmlab.methods.swebench.stages:SweInfer",
        "swe_evaluate": "lmlab.methods.swebench.stages:SweEvaluate",
    },
)
