from .core import chat, evaluate, generate, run, train_model
from .methods import (
    attack_retriever,
    compress_text,
    find_circuit,
    fit_ladder,
    grade_tutor,
    judge_patches,
    measure_long,
    rate_texts,
    select_texts,
    trace_routing,
    train_program,
)
from .model import LanguageModel, load

__all__ = [
    "LanguageModel",
    "attack_retriever",
    "chat",
    "compress_text",
    "evaluate",
    "find_circuit",
    "fit_ladder",
    "generate",
    "grade_tutor",
    "judge_patches",
    "load",
    "measure_long",
    "rate_texts",
    "run",
    "select_texts",
    "trace_routing",
    "train_model",
    "train_program",
]
