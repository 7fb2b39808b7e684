"""Corpus poisoning: what the command line, recipes and the documentation's tables know of the method."""

from lmlab.plugins import Method

METHOD = Method(
    title="Corpus poisoning",
    question="How few inserted passages mislead my retriever, and which filter stops them at what cost?",
    paper="Zhong et al. 2023",
    url="https://arxiv.org/abs/2310.19156",
    command="poison",
    cli="lmlab.methods.corpus_poisoning.cli:app",
    help="Robustness of one's own retriever: craft passages, measure, gate, harden, measure again.",
    page="methods/corpus_poisoning.md",
    published="50 passages mislead over 94 % of questions (Contriever)",
    reached="50 passages: 94 % of held-out questions, 9 % past a detector; ten that know it: 53 and 20 % (MiniLM)",
    extras=("retrieval",),
    stages={"poison": "lmlab.methods.corpus_poisoning.stages:Poison"},
    detectors={
        "hubness": "lmlab.methods.corpus_poisoning.defend.vectors:Hubness",
        "similarity": "lmlab.methods.corpus_poisoning.defend.vectors:MeanSimilarity",
        "excerpts": "lmlab.methods.corpus_poisoning.defend.vectors:Excerpts",
        "norm": "lmlab.methods.corpus_poisoning.defend.vectors:Norm",
        "near_duplicate": "lmlab.methods.corpus_poisoning.defend.duplicates:NearDuplicate",
        "perplexity": "lmlab.methods.corpus_poisoning.defend.language:Perplexity",
        "questions": "lmlab.methods.corpus_poisoning.defend.language:Questions",
        "mask_collapse": "lmlab.methods.corpus_poisoning.defend.masking:MaskCollapse",
        "gmtp": "lmlab.methods.corpus_poisoning.defend.masking:GMTP",
    },
)
