"""What is measured on a model, and on the baselines beside it."""

from lmlab.evals.compare import Comparison, compare_values, pair_rows
from lmlab.evals.compression import xz_bits, xz_bits_after
from lmlab.evals.evaluator import Evaluator
from lmlab.evals.generation import Prompt
from lmlab.evals.measurement import Measurement, bootstrapped, mean, ratio
from lmlab.evals.next_line import build_next_line_items
from lmlab.evals.next_word import build_next_word_items
from lmlab.evals.ngram import ByteNGram
from lmlab.evals.perplexity import bits_per_byte, measure_documents, perplexity_figures
from lmlab.evals.prefix_sharing import Window
from lmlab.evals.questions import Question, read_questions
from lmlab.evals.ranked import by_domain, chance_level, option_scores, question_row, rank_questions, ranked_figures
from lmlab.evals.rows import Row, read_rows
from lmlab.evals.run import (
    Settings,
    evaluation_during_training,
    main_metric,
    question_values,
    run_documents,
    run_task,
    task_figures,
    task_summary,
)
from lmlab.evals.scoring import ModelScorer, Score, Scorer
from lmlab.evals.tasks import Task, find_tasks, known_tasks, own_texts, read_task

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
