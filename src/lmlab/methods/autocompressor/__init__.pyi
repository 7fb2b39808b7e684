from .compressor.model import AutoCompressor
from .compressor.output import CompressorOutput
from .compressor.vectors import SummaryVectors
from .config import CompressorConfig, SegmentsConfig
from .store.encode import EncodeJob, SummaryStore, encode, summaries_of

__all__ = [
    "AutoCompressor",
    "CompressorConfig",
    "CompressorOutput",
    "EncodeJob",
    "SegmentsConfig",
    "SummaryStore",
    "SummaryVectors",
    "encode",
    "summaries_of",
]
