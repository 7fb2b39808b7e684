from .collections.read import load_dataset, read_corpus, read_qrels, read_queries
from .collections.records import REDTEAM, Corpus, Qrels, Queries, RetrievalDataset
from .collections.write import write_dataset, write_qrels
from .config import CollectionConfig, EncoderConfig, IndexKind, SearchConfig
from .encoders.directory import save_encoder, save_static, static_encoder
from .encoders.encoder import Encoder, TextEncoder
from .encoders.late import LateEncoder, LateIndex, load_late_encoder, maxsim
from .encoders.load import AnyEncoder, load_encoder
from .encoders.two_tower import TwoTowerEncoder
from .metrics import Evaluation, evaluate_run
from .run_files import Run, fuse_rrf, read_run, write_run
from .search.approximate import INDEX_KINDS, make_index
from .search.bm25 import BM25
from .search.exact import ExactIndex, Hits
from .search.quantize import Ranges, quantize
from .store import EmbeddingStore

__all__ = [
    "BM25",
    "INDEX_KINDS",
    "REDTEAM",
    "AnyEncoder",
    "CollectionConfig",
    "Corpus",
    "EmbeddingStore",
    "Encoder",
    "EncoderConfig",
    "Evaluation",
    "ExactIndex",
    "Hits",
    "IndexKind",
    "LateEncoder",
    "LateIndex",
    "Qrels",
    "Queries",
    "Ranges",
    "RetrievalDataset",
    "Run",
    "SearchConfig",
    "TextEncoder",
    "TwoTowerEncoder",
    "evaluate_run",
    "fuse_rrf",
    "load_dataset",
    "load_encoder",
    "load_late_encoder",
    "make_index",
    "maxsim",
    "quantize",
    "read_corpus",
    "read_qrels",
    "read_queries",
    "read_run",
    "save_encoder",
    "save_static",
    "static_encoder",
    "write_dataset",
    "write_qrels",
    "write_run",
]
