"""Data selection by quality: what the command line, recipes and the documentation's tables know of the method."""

from lmlab.plugins import Method

METHOD = Method(
    title="QuRating",
    question="Which texts of a corpus are worth training on?",
    paper="Wettig et al. 2024",
    url="https://arxiv.org/abs/2402.09739",
    command="quality",
    cli="lmlab.methods.qurating.cli:app",
    help="Data selection by perceived quality: judge pairs of texts, train a rater, rate a corpus, sample from it.",
    page="methods/qurating.md",
    published="choosing by rating beats uniform choice",
    reached="-0.042 ± 0.003 bits a byte on the demo",
    extras=("quality",),
    stages={
        "quality_judge": "lmlab.methods.qurating.stages:QualityJudge",
        "quality_rater": "lmlab.methods.qurating.stages:QualityRater",
        "quality_annotate": "lmlab.methods.qurating.stages:QualityAnnotate",
        "quality_select": "lmlab.methods.qurating.stages:QualitySelect",
        "quality_compare": "lmlab.methods.qurating.stages:QualityCompare",
    },
    judges={"offline": "lmlab.methods.qurating.rating.offline:offline_judge"},
)
