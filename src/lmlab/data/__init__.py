"""Text to documents to tokens to packed rows to batches."""

from lmlab.data.chat_template import ChatTemplate
from lmlab.data.collect import CollectConfig, collect
from lmlab.data.documents import Document, Reject, Source, read_documents
from lmlab.data.loader import Batch, Loader
from lmlab.data.packing import PackedRows
from lmlab.data.shards import TokenizedCorpus, write_shards
from lmlab.data.sources import JsonlSource, PythonLibrarySource, SourceConfig, TextSource
from lmlab.data.tokenizer import Tokenizer

__all__ = [
    "Batch",
    "ChatTemplate",
    "CollectConfig",
    "Document",
    "JsonlSource",
    "Loader",
    "PackedRows",
    "PythonLibrarySource",
    "Reject",
    "Source",
    "SourceConfig",
    "TextSource",
    "TokenizedCorpus",
    "Tokenizer",
    "collect",
    "read_documents",
    "write_shards",
]
