from .chat.conversations import ChatEncoder, Example, KTOExample, PreferencePair, read_records
from .chat.encoding import ChatConfig, chat_template, chat_tokenizer, encode_for_answer
from .chat.preferences import KTORows, PreferenceRows, example_row
from .chat.template import TULU_TEMPLATE, ChatTemplate
from .collecting.collect import DROPPED_BY, KEEP_ALL, CollectConfig, collect
from .collecting.decontamination import Contamination, Decontamination
from .collecting.words import is_unspaced
from .documents import Document, Reject, Source, read_documents
from .loader import Batch, Loader, Rows
from .mixture import Mixture, MixtureOrder, MixtureSource, Phase, Share, check_shares
from .packing import GrowingRows, JoinedRows, PackedRows, Packing, RowSource, WindowSchedule, best_fit
from .packs.account import PackAccount
from .packs.config import PackConfig
from .packs.mix_plan import Stream, StreamPlan, largest_remainder, parse_stream, plan_mix, plan_rows
from .packs.pack import Packed, TokenDocument, pack
from .packs.peek import Peeked, peek
from .packs.read import TokenSource
from .packs.rows import NOTES, PackRows, is_packs
from .packs.write import write_packs
from .rejects import Rejects, rejects_summary
from .shards import TokenizedCorpus, TokenizedItem, write_shards
from .sources import (
    ArrowSource,
    CsvSource,
    FileSource,
    FolderSource,
    JsonlSource,
    MDSSource,
    ParquetSource,
    PlacedSource,
    PythonLibrarySource,
    RecordSource,
    SourceConfig,
    TextSource,
    TokenizedSource,
    WebDatasetSource,
    choose_kind,
    find_source,
    record_kinds,
    record_source,
    source_kinds,
    source_settings,
)
from .sources.docstrings import conversation_records, docstring_questions, preference_records
from .sources.mds import MDSShard, MDSWriter, read_mds_index
from .tokenize import tokenize_documents
from .tokenizer import SpecialTokens, Tokenizer

__all__ = [
    "DROPPED_BY",
    "KEEP_ALL",
    "NOTES",
    "TULU_TEMPLATE",
    "ArrowSource",
    "Batch",
    "ChatConfig",
    "ChatEncoder",
    "ChatTemplate",
    "CollectConfig",
    "Contamination",
    "CsvSource",
    "Decontamination",
    "Document",
    "Example",
    "FileSource",
    "FolderSource",
    "GrowingRows",
    "JoinedRows",
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
    "PackAccount",
    "PackConfig",
    "PackRows",
    "Packed",
    "PackedRows",
    "Packing",
    "ParquetSource",
    "Peeked",
    "Phase",
    "PlacedSource",
    "PreferencePair",
    "PreferenceRows",
    "PythonLibrarySource",
    "RecordSource",
    "Reject",
    "Rejects",
    "RowSource",
    "Rows",
    "Share",
    "Source",
    "SourceConfig",
    "SpecialTokens",
    "Stream",
    "StreamPlan",
    "TextSource",
    "TokenDocument",
    "TokenSource",
    "TokenizedCorpus",
    "TokenizedItem",
    "TokenizedSource",
    "Tokenizer",
    "WebDatasetSource",
    "WindowSchedule",
    "best_fit",
    "chat_template",
    "chat_tokenizer",
    "check_shares",
    "choose_kind",
    "collect",
    "conversation_records",
    "docstring_questions",
    "encode_for_answer",
    "example_row",
    "find_source",
    "is_packs",
    "is_unspaced",
    "largest_remainder",
    "pack",
    "parse_stream",
    "peek",
    "plan_mix",
    "plan_rows",
    "preference_records",
    "read_documents",
    "read_mds_index",
    "read_records",
    "record_kinds",
    "record_source",
    "rejects_summary",
    "source_kinds",
    "source_settings",
    "tokenize_documents",
    "write_packs",
    "write_shards",
]
