"""Context compression: what the command line, recipes and the documentation's tables know of the method."""

from lmlab.plugins import Method

METHOD = Method(
    title="AutoCompressor",
    question="Can a few vectors stand for a long text that a model has read?",
    paper="Chevalier et al. 2023",
    url="https://arxiv.org/abs/2305.14788",
    command="compress",
    cli="lmlab.methods.autocompressor.cli:app",
    help="Context compression: learn to write summary vectors for text, and to read them in its place.",
    page="methods/autocompressor.md",
    published="perplexity behind 6,144 compressed tokens 5.93, RMT 6.01; without 6.31",
    reached="instead, accuracy of recall: summaries 1.00, RMT 0.60, without 0.13",
    stages={
        "compress_train": "lmlab.methods.autocompressor.stages:CompressTrain",
        "compress_fit": "lmlab.methods.autocompressor.stages:CompressFit",
        "compress_compare": "lmlab.methods.autocompressor.stages:CompressCompare",
        "compress_ppl": "lmlab.methods.autocompressor.measure.stages:CompressPpl",
    },
)
