from .answering.run import answer_by_endpoint, answer_locally
from .config import AnswerConfig, ChatGenerateConfig, FormatConfig, MixConfig, ScoreConfig
from .dialogues.encode import FormattedDialogue, encode_segments, format_record
from .dialogues.mix import write_dialogues
from .dialogues.segments import segments_of
from .items.item import TutorItem, load_items
from .scoring.compare import compare_rows, compare_until_known
from .scoring.grade import grade_run, graded_rows
from .scoring.score import score
from .writing.write import write_about

__all__ = [
    "AnswerConfig",
    "ChatGenerateConfig",
    "FormatConfig",
    "FormattedDialogue",
    "MixConfig",
    "ScoreConfig",
    "TutorItem",
    "answer_by_endpoint",
    "answer_locally",
    "compare_rows",
    "compare_until_known",
    "encode_segments",
    "format_record",
    "grade_run",
    "graded_rows",
    "load_items",
    "score",
    "segments_of",
    "write_about",
    "write_dialogues",
]
