"""SWE-bench: files that an issue is about, found by lmlab's BM25 and by `rank_bm25` with its defaults, in one run.

python benchmarks/swebench_retrieval.py INSTANCES.jsonl [...] [--encoder minilm]

The issues are those of instances that `lmlab swe validate` wrote (trees/ beside them); only those with words of their
own count, not those of releases without a list of changes. Also prints how far lmlab's scores are from BM25 computed
here by hand, term by term.
"""

from __future__ import annotations

import argparse
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from lmlab.files import cache_directory
from lmlab.methods.swebench import Instance, TreeStore, Workspaces, load_instances
from lmlab.methods.swebench.inference.ranking import K1, B, Ranker, documents, rank_bm25, recall
from lmlab.retrieval.search.bm25 import ENGLISH_STOP_WORDS, words


def by_hand(files: Mapping[str, str], query: str) -> dict[str, float]:
    """Scores by the formula (Lucene's idf), with the same words."""
    split = lambda text: [each for each in words(text) if each not in ENGLISH_STOP_WORDS]  # noqa: E731
    texts = {path: Counter(split(f"{path}\n{text}")) for path, text in files.items()}
    mean = sum(sum(each.values()) for each in texts.values()) / len(texts)
    found = dict.fromkeys(texts, 0.0)
    for word, times in Counter(split(query)).items():
        holding = sum(word in each for each in texts.values())
        idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        for path, each in texts.items():
            length = sum(each.values()) / mean
            found[path] += times * idf * each[word] / (each[word] + K1 * (1 - B + B * length))
    return found


def peer(files: Mapping[str, str], query: str) -> list[str]:
    """The order of `rank_bm25`, on words between blanks as its own page shows."""
    from rank_bm25 import BM25Okapi

    paths = list(files)
    scores = BM25Okapi([f"{path}\n{files[path]}".split() for path in paths]).get_scores(query.split())
    return [paths[place] for place in sorted(range(len(paths)), key=lambda place: -scores[place])]


def main() -> None:
    """All rankings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("instances", nargs="+", type=Path)
    parser.add_argument("--encoder", help="also rank by this encoder, and by both")
    options = parser.parse_args()
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")
    known: list[tuple[Instance, dict[str, str]]] = []
    for path in options.instances:
        workspaces = Workspaces(cache_directory() / "swe" / "workspaces", TreeStore(path.parent / "trees"))
        for each in load_instances(path):
            if each.extra.get("problem_source") != "none" and recall([], each) is not None:
                known.append((each, documents(workspaces.pristine(each))))
    worst = relative = 0.0
    ways: dict[str, list[Sequence[str]]] = {}
    rankers = {"bm25, whole names": Ranker("bm25", split_names=False), "bm25": Ranker("bm25")}
    if options.encoder:
        rankers |= {"dense": Ranker("dense", options.encoder), "hybrid": Ranker("hybrid", options.encoder)}
    for instance, files in known:
        query = instance.problem_statement
        hand = by_hand(files, query)
        for path, score in rank_bm25(files, query, len(files), split_names=False):
            worst = max(worst, abs(hand[path] - score))
            relative = max(relative, abs(hand[path] - score) / max(1.0, abs(score)))
        for name, ranker in rankers.items():
            ways.setdefault(name, []).append([path for path, _ in ranker.files(files, query)])
        ways.setdefault("rank_bm25, its defaults", []).append(peer(files, query))
    sizes = [len(files) for _, files in known]
    print(f"{len(known)} issues, {min(sizes)} to {max(sizes)} files each", end="; ")
    print(f"scores differ by at most {worst:.1e},", end=" ")
    print(f"and by {relative:.1e} of what they are where that is more than 1")
    print("| files by | recall@1 | recall@5 |\n|---|---|---|")
    for name, orders in ways.items():
        shares = []
        for top in (1, 5):
            pairs = zip(orders, known, strict=True)
            shares.append(sum(recall(order[:top], each) or 0.0 for order, (each, _) in pairs) / len(known))
        print(f"| {name} | {shares[0]:.3f} | {shares[1]:.3f} |")
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
