"""Does tuning on dialogues teach a small model to answer? The recipe `tutor-laptop` on real chapters, and beside it the
same stage with the mask inverted (chapters and questions learned, answers not): the loss of held-out answers.

    OMP_NUM_THREADS=1 python benchmarks/tutor_tuning.py TEXTBOOKS --out runs/tutor-tuning [--set KEY=VALUE ...]

TEXTBOOKS is a folder DOMAIN/BOOK/... of chapters, such as Debian's kstars-data and python-sklearn-doc; held-out
dialogues are about other chapters than those that are learned from. Intervals are of a bootstrap over chapters, of the
difference in each held-out dialogue.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from lmlab.data import TokenizedCorpus, TokenizedItem, Tokenizer, write_shards
from lmlab.files import read_jsonl, read_yaml
from lmlab.runs import Model, Recipe, run_recipe
from lmlab.stats import paired_bootstrap

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run, measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("textbooks")
    parser.add_argument("--out", type=Path, default=Path("runs/tutor-tuning"))
    parser.add_argument("--set", action="append", default=[], dest="changes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, one thread", flush=True)
    places = [f"stages.documents.sources.0.path={given.textbooks}", f"stages.dialogues.chapters={given.textbooks}"]
    changes = [f"stages.{each}" for each in given.changes]
    started = time.perf_counter()
    run_recipe(Recipe.load(ROOT / "recipes" / "tutor-laptop.yaml", places + changes), given.out)
    print(f"recipe: {time.perf_counter() - started:.0f} s", flush=True)
    inverted = given.out.with_name(f"{given.out.name}-inverted")
    invert(given.out / "dialogue_tokens", inverted / "tokens")
    stage = read_yaml(given.out / "recipe.yaml")["stages"]["tutor"] | {
        "start": str(given.out / "longer"),
        "tokens": str(inverted / "tokens"),
        "heldout_tokens": str(given.out / "heldout_dialogues"),
    }
    run_recipe(Recipe.parse({"name": "inverted", "seed": 0, "stages": {"tutor": stage}}, "inverted"), inverted / "run")
    chapters = [row["path_to_chapter"] for row in read_jsonl(given.out / "dialogues" / "heldout.jsonl")]
    losses = {
        name: answer_losses(Model.find(place).load(), given.out / "heldout_dialogues")
        for name, place in {
            "before": given.out / "longer",
            "after": given.out / "tutor",
            "inverted mask": inverted / "run" / "tutor",
        }.items()
    }
    count = len(losses["before"])
    clusters = chapters if len(chapters) == count else list(range(count))
    print(f"\nLoss of answers in {count} held-out dialogues about {len(set(clusters))} chapters, nats a token")
    base = losses["before"]
    for name, each in losses.items():
        gap, _ = paired_bootstrap(base, each, clusters=clusters)
        share = 100 * (each.mean() / base.mean() - 1)
        print(f"  {name:14s} {each.mean():.3f}   {share:+.1f} %   difference [{gap.low:+.3f}, {gap.high:+.3f}]")


def invert(tokens: Path, out: Path) -> None:
    """Write a corpus in which what was learned is not, and the reverse."""
    corpus, items = TokenizedCorpus(tokens), []
    for shard in corpus.shards:
        for start, end in zip([0, *shard.ends[:-1]], shard.ends, strict=True):
            ids, mask = shard.tokens[start:end].tolist(), (1 - shard.mask[start:end]).tolist()
            items.append(TokenizedItem(ids, "inverted", 4 * len(ids), mask))
    write_shards(iter(items), Tokenizer.load(tokens / "tokenizer"), out, kind="examples")


@torch.no_grad()
def answer_losses(model: torch.nn.Module, tokens: Path, every: int = 1) -> np.ndarray:
    """The mean loss over the learned tokens of each sequence, or of every so-many-th."""
    found, number = [], -1
    for shard in TokenizedCorpus(tokens).shards:
        for start, end in zip([0, *shard.ends[:-1]], shard.ends, strict=True):
            number += 1
            if number % every:
                continue
            ids = torch.tensor(shard.tokens[start:end].astype(np.int64))[None]
            learned = torch.tensor(shard.mask[start:end].astype(bool))
            logits = model(ids[:, :-1]).logits_BTV[0]
            loss = F.cross_entropy(logits.float(), ids[0, 1:], reduction="none")
            found.append(float(loss[learned[1:]].mean()))
    return np.array(found)


if __name__ == "__main__":
    main()
