"""Text to documents to tokens to packed rows to batches."""

from lmlab.data.chat import ChatEncoder, Example, KTOExample, PreferencePair, encode_records, read_records
from lmlab.data.chat_encoding import ChatConfig, chat_template, chat_tokenizer, encode_for_answer
from lmlab.data.chat_template import TULU_TEMPLATE, ChatTemplate
from lmlab.data.collect import KEEP_ALL, CollectConfig, collect
from lmlab.data.decontamination import Contamination, Decontamination
from lmlab.data.docstring_questions import conversation_records, docstring_questions, preference_records
from lmlab.data.documents import Document, Reject, Source, read_documents
from lmlab.data.loader import Batch, Loader, Rows
from lmlab.data.mds import MDSShard, MDSWriter, read_mds_index
from lmlab.data.mixture import Mixture, MixtureOrder, MixtureSource, Phase, Share
from lmlab.data.packing import PackedRows, Packing, best_fit
from lmlab.data.preference_rows import KTORows, PreferenceRows, example_row
from lmlab.data.shards import TokenizedCorpus, TokenizedItem, write_shards
from lmlab.data.sources import (
    ArrowSource,
    JsonlSource,
    MDSSource,
    ParquetSource,
    PythonLibrarySource,
    RecordSource,
    SourceConfig,
    TextSource,
    TokenizedSource,
    WebDatasetSource,
    choose_kind,
    record_source,
    source_settings,
)
from lmlab.data.tokenize import tokenize_documents
from lmlab.data.tokenizer import Tokenizer

__all__ = [
    "KEEP_ALL",
    "TULU_TEMPLATE",
    "ArrowSource",
    "Batch",
    "ChatConfig",
    "ChatEncoder",
    "ChatTemplate",
    "CollectConfig",
    "Contamination",
    "Decontamination",
    "Document",
    "Example",
    "JsonlSource",
    "KTOExample",
    "KTORows",
    "Loader",
    "MDSShard",
    "MDSSource",
    "MDSWriter",
    "Mixture",
    "MixtureOrder",
    "MixtureSource",
    "PackedRows",
    "Packing",
    "ParquetSource",
    "Phase",
    "PreferencePair",
    "PreferenceRows",
    "PythonLibrarySource",
    "RecordSource",
    "Reject",
    "Rows",
    "Share",
    "Source",
    "SourceConfig",
    "TextSource",
    "TokenizedCorpus",
    "TokenizedItem",
    "TokenizedSource",
    "Tokenizer",
    "WebDatasetSource",
    "best_fit",
    "chat_template",
    "chat_tokenizer",
    "choose_kind",
    "collect",
    "conversation_records",
    "docstring_questions",
    "encode_for_answer",
    "encode_records",
    "example_row",
    "preference_records",
    "read_documents",
    "read_mds_index",
    "read_records",
    "record_source",
    "source_settings",
    "tokenize_documents",
    "write_shards",
]
