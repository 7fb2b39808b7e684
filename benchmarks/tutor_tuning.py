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
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from lmlab.data import TokenizedCorpus, TokenizedItem, Tokenizer, write_shards
from lmlab.files import read_jsonl, read_yaml
from lmlab.methods.tutor.dialogues.encode import FormattedDialogue, UnfitRecord, format_record
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
    stages = read_yaml(given.out / "recipe.yaml")["stages"]
    dialogues = heldout_dialogues(
        given.out / "dialogues" / "heldout.jsonl",
        Tokenizer.load(given.out / "heldout_dialogues" / "tokenizer"),
        stages["heldout_dialogues"]["max_len"],
    )
    clusters = [chapter for chapter, _ in dialogues]
    losses = {
        name: answer_losses(Model.find(place).load(), dialogues)
        for name, place in {
            "before": given.out / "longer",
            "after": given.out / "tutor",
            "inverted mask": inverted / "run" / "tutor",
        }.items()
    }
    print(f"\nLoss of answers in {len(dialogues)} held-out dialogues about {len(set(clusters))} chapters, nats a token")
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


def heldout_dialogues(
    path: Path, tokenizer: Tokenizer, max_len: int, format: Literal["plain", "template"] = "plain", most: int = 1000
) -> list[tuple[str, FormattedDialogue]]:
    """Dialogues that are not learned from, with the chapters that they are about; at most so many, spread over all."""
    found = []
    for row in read_jsonl(path):
        try:
            found.append((row["path_to_chapter"], format_record(row, tokenizer, max_len, format=format)))
        except UnfitRecord:
            continue
    return found[:: -(-len(found) // most)]


@torch.no_grad()
def answer_losses(model: torch.nn.Module, dialogues: Sequence[tuple[str, FormattedDialogue]]) -> np.ndarray:
    """The mean loss over the learned tokens of each."""
    found = []
    for _, each in dialogues:
        ids, labels = torch.tensor(each.ids)[None], torch.tensor(each.labels)
        logits = model(ids[:, :-1]).logits_BTV[0]
        found.append(float(F.cross_entropy(logits.float(), labels[1:], ignore_index=-100)))
    return np.array(found)


if __name__ == "__main__":
    main()
