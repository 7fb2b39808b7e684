"""Kinds of compression that learn, by adapters beside a trained model, on real text: what follows a context of held-out
texts gains from its memory, at equal positions and equal training.

    python benchmarks/compression_learned.py runs/learned --model models/smollm2 --steps 240
    python benchmarks/compression_learned.py runs/learned --model models/smollm2 --kinds "anchor_kv causal" bi_tokens

Each kind learns from the same rows (papers, Python's library; as `autocompressor.py text`): the first half of a row is
compressed, the second is predicted behind it. Measured is the loss of as many tokens of texts that nobody learned from,
behind the memory of their own context and behind that of another text, and by the untrained model behind nothing, the
whole context, its last tokens and what `prune:kvzip` and `prune:random` keep of it, with paired intervals over texts. A
killed run goes on. `anchor_kv causal` sets the flag `causal` of its kind.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compressor_parts.text import write_documents

UNTRAINED = ("none", "full", "truncate", "prune:random", "prune:kvzip")
KINDS = ("anchor_kv causal", "meanpool", "summary")


def recipe(arguments: argparse.Namespace, kind: str) -> dict[str, Any]:
    """One training, on tokens that are made once."""
    from lmlab.methods.autocompressor.kinds.base import kinds

    kind, *flags = kind.split()
    settings: dict[str, Any] = {"ratio": arguments.ratio, "train": "lora"} | dict.fromkeys(flags, True)
    if "vector_scale" in kinds()[kind].Config.model_fields:
        settings["vector_scale"] = "embedding"
    if kind in ("summary", "rmt"):
        settings["segment"] = arguments.context
    return {
        "name": kind,
        "seed": 0,
        "stages": {
            "fit": {
                "kind": "compress_fit",
                "start": str(arguments.model),
                "tokens": str(arguments.out / "tokens" / "tokens"),
                "compressor": kind,
                "settings": settings,
                "context": arguments.context,
                "continuation": arguments.context,
                "trainer": {
                    "steps": arguments.steps,
                    "batch_size": arguments.rows,
                    "precision": arguments.precision,
                    "device": "cpu",
                    "checkpoint_every": 50,
                    "log_every": 10,
                    "optimizer": {"name": "adamw", "learning_rate": arguments.rate, "weight_decay": 0.01},
                    "schedule": {"warmup_fraction": 0.05},
                },
            }
        },
    }


def _place(name: str) -> str:
    return name.replace(":", "-").replace(" ", "-")


def windows(arguments: argparse.Namespace) -> dict[str, list[list[int]]]:
    """A context and what follows it, from the beginning of each held-out text that is long enough."""
    from lmlab.data import Tokenizer, read_documents

    tokenizer, length = Tokenizer.load(arguments.model), 2 * arguments.context
    found: dict[str, list[list[int]]] = {}
    for each in read_documents(arguments.out / "heldout.jsonl"):
        ids = tokenizer.encode_prompt(each.text[: 40 * length])
        if len(ids) >= length and len(found.setdefault(each.domain, [])) < arguments.texts:
            found[each.domain].append(ids[:length])
    return found


@torch.no_grad()
def losses(model: Any, memories: list[Any], texts: torch.Tensor) -> list[float]:
    """The mean loss of each text behind its memory, but for the first token, which some lines have nothing before."""
    found = []
    for memory, ids_T in zip(memories, texts, strict=True):
        hidden_1TD = model(ids_T[None], memory=memory, logits="none").hidden_BTD
        logits_TV = model.logits_of(hidden_1TD[0, :-1]).float()
        found.append(float(torch.nn.functional.cross_entropy(logits_TV, ids_T[1:])))
    return found


def measured(arguments: argparse.Namespace, name: str, compressor: Any, texts: dict[str, list[list[int]]]) -> Any:
    """The losses of each domain behind own memories and behind others'; kept in a file, with what they are of."""
    from lmlab.files import read_json, sha256_json, write_json
    from lmlab.models import known_fingerprint

    place = arguments.out / "measured" / f"{_place(name)}.json"
    read_by = [known_fingerprint(compressor), compressor.config.model_dump(mode="json")]
    of = sha256_json([name, arguments.ratio, arguments.context, texts, *read_by])
    if not place.exists() or read_json(place).get("of") != of:
        place.parent.mkdir(parents=True, exist_ok=True)
        told: dict[str, Any] = {"of": of}
        for domain, rows in texts.items():
            contexts, following = torch.tensor(rows).split(arguments.context, 1)
            memories = [compressor.compress(ids[None], ratio=arguments.ratio) for ids in contexts]
            others = memories[-1:] + memories[:-1]
            told[domain] = {
                "own": losses(compressor.model, memories, following),
                "other": losses(compressor.model, others, following),
                "positions": float(np.mean([float(each.slots_B.mean()) for each in memories])),
            }
        write_json(place, told)
    return read_json(place)


def interval(values: np.ndarray) -> str:
    """The mean and its interval by the bootstrap over texts."""
    from lmlab.stats import bootstrap

    found = bootstrap(lambda index: float(values[index].mean()), len(values))
    return f"{values.mean():.3f} ({found.low:.3f} to {found.high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--ratio", type=float, default=8)
    parser.add_argument("--context", type=int, default=128, help="tokens that are compressed, and that follow")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--texts", type=int, default=40, help="of each domain")
    arguments = parser.parse_args()

    from lmlab.methods.autocompressor import create
    from lmlab.methods.autocompressor.fitting.files import load_kind
    from lmlab.runs import Model, Recipe, run_recipe

    out = arguments.out
    write_documents(out, None)
    stages = {"tokens": {"kind": "tokenize", "documents": str(out / "long.jsonl"), "tokenizer": str(arguments.model)}}
    run_recipe(Recipe.parse({"name": "tokens", "seed": 0, "stages": stages}, "the benchmark"), out / "tokens")
    texts, found = windows(arguments), {}
    base = Model.find(arguments.model).load().eval()
    for name in UNTRAINED:
        found[name] = measured(arguments, name, create(name, base), texts)
    for kind in arguments.kinds:
        began = time.process_time()
        run_recipe(Recipe.parse(recipe(arguments, kind), "the benchmark"), out / _place(kind))
        spent = time.process_time() - began
        found[kind] = measured(arguments, kind, load_kind(out / _place(kind) / "fit"), texts)
        print(f"{kind}: {spent:.0f} s of processor time, load {os.getloadavg()[0]:.1f}", flush=True)
    seen = arguments.steps * arguments.rows * 2 * arguments.context
    print(
        f"\nratio {arguments.ratio:g}, {arguments.context} tokens of context, {seen:,} tokens learned from by each kind"
    )
    for domain, rows in texts.items():
        none, full = (np.array(found[name][domain]["own"]) for name in ("none", "full"))
        last = np.array(found["truncate"][domain]["own"])
        print(f"\n{domain}: {len(rows)} texts, {none.mean():.3f} nats a token without, {full.mean():.3f} with all")
        print("| memory | positions | gain over nothing | own above another's | above as many plain tokens |")
        print("|---|---|---|---|---|")
        for name, told in found.items():
            own, other = (np.array(told[domain][key]) for key in ("own", "other"))
            cells = [interval(none - own), interval(other - own), interval(last - own)]
            print(f"| `{name}` | {told[domain]['positions']:.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
