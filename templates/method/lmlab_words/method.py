"""Words: what the command line, recipes and the documentation's tables know of the method."""

from lmlab.plugins import Method

METHOD = Method(
    title="Words",
    question="Which words does a corpus use most?",
    paper="Zipf 1949",
    url="https://en.wikipedia.org/wiki/Zipf%27s_law",
    command="words",
    cli="lmlab_words.cli:app",
    help="Words: the most frequent words of documents.",
    page="methods/words.md",
    stages={"count_words": "lmlab_words.stages:CountWords"},
)
