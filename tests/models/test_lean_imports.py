"""Reading a model imports what it takes, and not PyTorch's compiler, sharding or another library of models."""

from __future__ import annotations

import subprocess
import sys

from lmlab.models import ModelConfig, Transformer, save_pretrained

_READ = """
import sys
from lmlab.runs import Model
network = Model.find(sys.argv[1]).load_in("fp32")
print(*sorted({"torch._dynamo", "sympy", "torch.distributed.tensor", "transformers"} & set(sys.modules)))
"""


def test_a_model_is_read_without_the_compiler(tmp_path):
    config = ModelConfig(vocab_size=32, num_layers=1, d_model=16, num_heads=2, max_seq_len=16)
    save_pretrained(Transformer(config), tmp_path / "model")
    done = subprocess.run([sys.executable, "-P", "-c", _READ, tmp_path / "model"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]
    assert done.stdout.strip() == ""
