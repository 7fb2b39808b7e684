from .core import chat, evaluate, generate, run, train_model
from .methods import find_circuit, fit_ladder, measure_long, rate_texts, select_texts, trace_routing
from .model import LanguageModel, load

__all__ = [
    "LanguageModel",
    "chat",
    "evaluate",
    "find_circuit",
    "fit_ladder",
    "generate",
    "load",
    "measure_long",
    "rate_texts",
    "run",
    "select_texts",
    "trace_routing",
    "train_model",
]
