from .compressor.model import AutoCompressor
from .compressor.output import CompressorOutput
from .compressor.vectors import SummaryVectors
from .config import CompressorConfig, SegmentsConfig
from .kinds.base import Compressor, create
from .store.encode import EncodeJob, SummaryStore, encode, summaries_of
from .streaming import Stream

__all__ = [
    "AutoCompressor",
    "Compressor",
    "CompressorConfig",
    "CompressorOutput",
    "EncodeJob",
    "SegmentsConfig",
    "Stream",
    "SummaryStore",
    "SummaryVectors",
    "create",
    "encode",
    "summaries_of",
]
