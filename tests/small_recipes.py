"""A recipe that goes through every kind of stage in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def small_recipe(library: Path) -> dict[str, Any]:
    """A recipe with every kind of stage."""
    return {
        "name": "small",
        "stages": {
            "documents": {
                "kind": "collect",
                "sources": [{"kind": "python_library", "path": str(library)}],
                "heldout_fraction": 0.3,
            },
            "tokenizer": {"kind": "train_tokenizer", "documents": "documents", "vocab_size": 400},
            "tokens": {"kind": "tokenize", "documents": "documents", "tokenizer": "tokenizer"},
            "heldout_tokens": {
                "kind": "tokenize",
                "documents": "documents",
                "tokenizer": "tokenizer",
                "split": "heldout",
            },
            "questions": {
                "kind": "next_line_task",
                "documents": "documents",
                "items_per_domain": 10,
                "context_bytes": 100,
            },
            "baselines": {"kind": "baselines", "documents": "documents", "task": "questions", "order": 3},
            "model": {
                "kind": "train",
                "tokens": "tokens",
                "tokenizer": "tokenizer",
                "heldout_tokens": "heldout_tokens",
                "seq_len": 64,
                "model": {"vocab_size": 400, "num_layers": 1, "d_model": 32, "num_heads": 2, "max_seq_len": 256},
                "trainer": {
                    "steps": 6,
                    "batch_size": 4,
                    "precision": "fp32",
                    "log_every": 1,
                    "checkpoint_every": 2,
                    "device": "cpu",
                },
            },
            "evaluation": {
                "kind": "evaluate",
                "model": "model",
                "documents": "documents",
                "task": "questions",
                "baselines": "baselines",
                "untrained": True,
                "device": "cpu",
            },
            "samples": {
                "kind": "generate",
                "model": "model",
                "prompts": ["def f("],
                "max_new_tokens": 5,
                "device": "cpu",
            },
            "export": {"kind": "export", "model": "model"},
            "report": {"kind": "report"},
        },
    }


def cut_after(recipe: dict[str, Any], stage: str) -> dict[str, Any]:
    """The recipe with the stages up to this one."""
    names = list(recipe["stages"])
    return recipe | {"stages": {name: recipe["stages"][name] for name in names[: names.index(stage) + 1]}}
