from .baselines.compression import xz_bits, xz_bits_after
from .baselines.ngram import ByteNGram
from .compare import Comparison, compare_values, pair_rows
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
    Settings,
    evaluation_during_training,
    main_metric,
    question_values,
    run_documents,
    run_task,
    task_figures,
    task_summary,
)
from .scoring import ModelScorer, Score, Scorer
from .tasks.next_line import build_next_line_items
from .tasks.next_word import build_next_word_items
from .tasks.questions import Question, read_questions
from .tasks.task import Task, find_tasks, known_tasks, own_texts, read_task

__all__ = [
    "ByteNGram",
    "Comparison",
    "Evaluator",
    "Measurement",
    "ModelScorer",
    "Prompt",
    "Question",
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
    "find_tasks",
    "known_tasks",
    "main_metric",
    "mean",
    "measure_documents",
    "option_scores",
    "own_texts",
    "pair_rows",
    "perplexity_figures",
    "question_row",
    "question_values",
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
