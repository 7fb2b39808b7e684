"""Long context: what the command line, recipes and the documentation's tables know of the method."""

from lmlab.plugins import Method

METHOD = Method(
    title="ProLong",
    question="How far back can a model look, and how does one make it look further?",
    paper="Gao et al. 2024",
    url="https://arxiv.org/abs/2410.02660",
    command="long",
    cli="lmlab.methods.prolong.cli:app",
    help="Long context: extend a window, train on it, measure it on real text at exact lengths (ProLong, HELMET).",
    page="methods/prolong.md",
    published="ProLong-8B: 49.4 on HELMET at 128K",
    reached="instead, 1M parameters, 256 to 1,024 tokens, recall at 2,048 is 0.94, with theta unchanged 0.76",
    sources={"counted_words": "lmlab.methods.prolong.counting:CountedWordsSource"},
    stages={
        "long_evaluate": "lmlab.methods.prolong.stages:LongEvaluate",
        "probe_window": "lmlab.methods.prolong.stages:ProbeWindow",
        "search_rope": "lmlab.methods.prolong.stages:SearchRope",
    },
)
