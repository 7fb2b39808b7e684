"""What is measured on a model, and on the baselines beside it."""

from lmlab.evals.compression import xz_bits, xz_bits_after
from lmlab.evals.next_line import build_next_line_items
from lmlab.evals.ngram import ByteNGram
from lmlab.evals.perplexity import Measurement, bits_per_byte, document_bits
from lmlab.evals.ranked import RankedItem, RankedResult, option_bits, read_items, score_ranking
from lmlab.evals.scoring import log_likelihoods

__all__ = [
    "ByteNGram",
    "Measurement",
    "RankedItem",
    "RankedResult",
    "bits_per_byte",
    "build_next_line_items",
    "document_bits",
    "log_likelihoods",
    "option_bits",
    "read_items",
    "score_ranking",
    "xz_bits",
    "xz_bits_after",
]
