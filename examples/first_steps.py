"""First steps: a model of a few weights from a dozen modules of the standard library, in seconds on a laptop.

python examples/first_steps.py [FOLDER for the run]
"""

import json
import sys
import tempfile
from pathlib import Path

import lmlab

RECIPE = {
    "name": "first-steps",
    "stages": {
        "documents": {
            "kind": "collect",
            "sources": [{"kind": "text", "path": str(Path(json.__file__).parent / "*.py")}],
        },
        "tokenizer": {"kind": "train_tokenizer", "documents": "documents", "vocab_size": 512},
        "tokens": {"kind": "tokenize", "documents": "documents", "tokenizer": "tokenizer"},
        "model": {
            "kind": "train",
            "tokens": "tokens",
            "tokenizer": "tokenizer",
            "seq_len": 64,
            "model": {"vocab_size": 512, "num_layers": 2, "d_model": 64, "num_heads": 4, "max_seq_len": 128},
            "trainer": {"steps": 30, "batch_size": 8, "checkpoint_every": 30},
        },
    },
}

run = lmlab.run(RECIPE, sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
model = lmlab.load(run)
print(model.generate("def ", max_new_tokens=30))
print(f"{model.bits_per_byte('def f(self, value): return value'):.2f} bits per byte")
for option, log_prob in zip(("return", "Grüße"), model.score("    ", ("return", "Grüße")), strict=True):
    print(f"log-probability of {option!r}: {log_prob:.1f}")
