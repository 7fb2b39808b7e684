from .columnar import ArrowSource, ParquetSource
from .delimited import CsvSource
from .finding.choose import choose_kind, record_source, source_settings
from .finding.kinds import find_source, record_kinds, source_kinds
from .finding.registry import SourceConfig
from .folder import FolderSource
from .jsonl import JsonlSource
from .mds_source import MDSSource
from .python_library import PythonLibrarySource
from .reading.files import FileSource
from .reading.placed import PlacedSource
from .reading.records import RecordSource
from .text import TextSource
from .tokenized import TokenizedSource
from .webdataset import WebDatasetSource

__all__ = [
    "ArrowSource",
    "CsvSource",
    "FileSource",
    "FolderSource",
    "JsonlSource",
    "MDSSource",
    "ParquetSource",
    "PlacedSource",
    "PythonLibrarySource",
    "RecordSource",
    "SourceConfig",
    "TextSource",
    "TokenizedSource",
    "WebDatasetSource",
    "choose_kind",
    "find_source",
    "record_kinds",
    "record_source",
    "source_kinds",
    "source_settings",
]
