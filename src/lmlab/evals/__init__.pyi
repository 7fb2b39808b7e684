from .baselines.compression import xz_bits, xz_bits_after
from .baselines.ngram import ByteNGram
from .comparing.questions import Comparison, compare_values, pair_rows
from .evaluator import Evaluator
from .generation import Prompt
from .measurement import Measurement, bootstrapped, mean, ratio
from .perplexity import bits_per_byte, measure_documents, perplexity_figures
from .prefix_sharing import Window
from .ranked import (
    accuracy_by_domain,
    by_domain,
    chance_level,
    option_scores,
    question_row,
    rank_questions,
    ranked_figures,
)
from .rows import Row, read_rows
from .run import (
    evaluation_during_training,
    run_documents,
    run_task,
    task_figures,
    task_summary,
)
from .scoring import ModelScorer, Score, Scorer
from .tasks.find import find_kind, find_tasks, known_groups, known_tasks, make_task, metric_of, read_task
from .tasks.generation_task import GenerationTask
from .tasks.next_line import build_next_line_items
from .tasks.next_word import build_next_word_items
from .tasks.questions import Question, read_questions
from .tasks.ranked_task import RankedTask
from .tasks.task import Asked, Item, Metric, Settings, Task, own_texts

__all__ = [
    "Asked",
    "ByteNGram",
    "Comparison",
    "Evaluator",
    "GenerationTask",
    "Item",
    "Measurement",
    "Metric",
    "ModelScorer",
    "Prompt",
    "Question",
    "RankedTask",
    "Row",
    "Score",
    "Scorer",
    "Settings",
    "Task",
    "Window",
    "accuracy_by_domain",
    "bits_per_byte",
    "bootstrapped",
    "build_next_line_items",
    "build_next_word_items",
    "by_domain",
    "chance_level",
    "compare_values",
    "evaluation_during_training",
    "find_kind",
    "find_tasks",
    "known_groups",
    "known_tasks",
    "make_task",
    "mean",
    "measure_documents",
    "metric_of",
    "option_scores",
    "own_texts",
    "pair_rows",
    "perplexity_figures",
    "question_row",
    "rank_questions",
    "ranked_figures",
    "ratio",
    "read_questions",
    "read_rows",
    "read_task",
    "run_documents",
    "run_task",
    "task_figures",
    "task_summary",
    "xz_bits",
    "xz_bits_after",
]
