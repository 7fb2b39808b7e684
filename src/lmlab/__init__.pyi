from .door import (
    LanguageModel,
    chat,
    evaluate,
    find_circuit,
    fit_ladder,
    generate,
    load,
    measure_long,
    rate_texts,
    run,
    select_texts,
    trace_routing,
    train_model,
)

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

__version__: str
