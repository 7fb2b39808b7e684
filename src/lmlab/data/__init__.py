"""Text to documents to tokens to packed rows to batches."""

from lmlab.data.chat_template import ChatTemplate
from lmlab.data.collect import CollectConfig, collect
from lmlab.data.documents import Document, Reject, Source, read_documents
from lmlab.data.loader import Batch, Loader
from lmlab.data.mixture import Mixture, MixtureOrder, MixtureSource, Phase, Share
from lmlab.data.packing import PackedRows, Packing
from lmlab.data.shards import TokenizedCorpus, TokenizedItem, write_shards
from lmlab.data.sources import JsonlSource, PythonLibrarySource, SourceConfig, TextSource
from lmlab.data.tokenize import tokenize_documents
from lmlab.data.tokenizer import Tokenizer

__all__ = [
    "Batch",
    "ChatTemplate",
    "CollectConfig",
    "Document",
    "JsonlSource",
    "Loader",
    "Mixture",
    "MixtureOrder",
    "MixtureSource",
    "PackedRows",
    "Packing",
    "Phase",
    "PythonLibrarySource",
    "Reject",
    "Share",
    "Source",
    "SourceConfig",
    "TextSource",
    "TokenizedCorpus",
    "TokenizedItem",
    "Tokenizer",
    "collect",
    "read_documents",
    "tokenize_documents",
    "write_shards",
]
