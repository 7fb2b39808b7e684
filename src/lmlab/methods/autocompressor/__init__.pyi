from .compressor.model import AutoCompressor, CompressorOutput
from .compressor.vectors import SummaryVectors
from .config import CompressorConfig, SegmentsConfig

__all__ = ["AutoCompressor", "CompressorConfig", "CompressorOutput", "SegmentsConfig", "SummaryVectors"]
