"""Text to documents to tokens to packed rows to batches."""

from lmlab.data.chat_template import ChatTemplate
from lmlab.data.collect import CollectConfig, collect
from lmlab.data.documents import Document, Reject, Source, read_documents
from lmlab.data.loader import Batch, Loader
from lmlab.data.mds import MDSWriter
from lmlab.data.packing import PackedRows
from lmlab.data.shards import TokenizedCorpus, write_shards
from lmlab.data.sources import (
    ArrowSource,
    JsonlSource,
    MDSSource,
    ParquetSource,
    PythonLibrarySource,
    SourceConfig,
    TextSource,
    choose_kind,
)
from lmlab.data.tokenizer import Tokenizer

__all__ = [
    "ArrowSource",
    "Batch",
    "ChatTemplate",
    "CollectConfig",
    "Document",
    "JsonlSource",
    "Loader",
    "MDSSource",
    "MDSWriter",
    "PackedRows",
    "ParquetSource",
    "PythonLibrarySource",
    "Reject",
    "Source",
    "SourceConfig",
    "TextSource",
    "TokenizedCorpus",
    "Tokenizer",
    "choose_kind",
    "collect",
    "read_documents",
    "write_shards",
]
