"""A rater is asked for a quality whose true value is known, and its choices are judged by the loss of language models
trained on them.

Real text is cut into pieces, of which most are spoiled by letters that are exchanged at random. A simulated judge with
a preference for the second place votes on pairs by the true quality. A small rater learns from the votes (part 1), and
rates a pool of spoiled and clean pieces; a trigram model, and with --neural a small transformer, learn from what each
way of choosing takes of the pool, at equal tokens (part 2). With --seeds raters, noise and models are of several seeds.

    python benchmarks/qurating_known_answer.py --pairs 1000 --controls
    python benchmarks/qurating_known_answer.py --pairs 1000 --neural --seeds 3 --out known.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import spearmanr

from lmlab.data import Document, JsonlSource, Tokenizer
from lmlab.judging import Judgment, soft_labels
from lmlab.methods.qurating import Rater, RaterConfig, select, train_rater
from lmlab.methods.qurating.rating.metrics import pair_metrics
from lmlab.methods.qurating.selecting.curriculum import order_rows

SHARED = Path(os.environ.get("LMLAB_SHARED", "../shared"))
CRITERIA = ("clean", "expertise")
BIAS, VOTES, TOKENS = 0.4, 20, 192
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


def pieces(size: int = 1000) -> list[Document]:
    """The corpus in pieces of `size` characters."""
    found = []
    for document in JsonlSource(
        path=str(SHARED / "data/texts/*.jsonl.zst"), text_field="text", id_field="id", domain_field="domain"
    ).read():
        assert isinstance(document, Document), document
        for start in range(0, len(document.text) - size + 1, size):
            found.append(
                Document(f"{document.id}-{start // size}", document.text[start : start + size], document.domain)
            )
    return found


def corrupt(text: str, level: float, rng: np.random.Generator) -> str:
    """A share of 0.35 `level` of the characters, letters alone, replaced by random letters."""
    characters = np.array(list(text))
    hit = (rng.random(len(characters)) < 0.35 * level) & np.array([character.isalpha() for character in text])
    characters[hit] = rng.choice(LETTERS, hit.sum())
    return "".join(characters)


def word_length(text: str) -> float:
    words = re.findall(r"\w+", text) or [""]
    return sum(map(len, words)) / len(words)


def spoil(documents: list[Document], clean_share: float, seed: int) -> tuple[list[Document], np.ndarray]:
    """The documents, some left clean and the others spoiled at levels between 0 and 1, and the levels."""
    rng = np.random.default_rng(seed)
    levels = np.where(rng.random(len(documents)) < clean_share, 0.0, rng.random(len(documents)))
    texts = [corrupt(each.text, level, rng) for each, level in zip(documents, levels, strict=True)]
    return [Document(each.id, text, each.domain) for each, text in zip(documents, texts, strict=True)], levels


def utilities(documents: list[Document], levels: np.ndarray) -> np.ndarray:
    """The true qualities, [N, 2]."""
    lengths = np.array([word_length(each.text) for each in documents])

    def z(x: np.ndarray) -> np.ndarray:
        return (x - x.mean()) / x.std()

    return np.stack([-4 * levels + 0.5 * z(lengths), 1.5 * z(np.log(lengths))], 1)


def judge(
    documents: list[Document], utility: np.ndarray, pairs: np.ndarray, rng: np.random.Generator
) -> list[Judgment]:
    """The votes of a judge with a preference for the second place."""
    found = []
    for i, j in pairs:
        average = {}
        for column, name in enumerate(CRITERIA):
            a, b = np.full((2, 2), -100.0), np.full((2, 2), -100.0)
            for first, second in ((0, 1), (1, 0)):
                difference = utility[(i, j)[second], column] - utility[(i, j)[first], column]
                b[first, second] = rng.binomial(VOTES, 1 / (1 + math.exp(-difference - BIAS)))
                a[first, second] = VOTES - b[first, second]
            average[name] = soft_labels(a, b, VOTES)
        found.append(Judgment((documents[i].text, documents[j].text), average, {}, (documents[i].id, documents[j].id)))
    return found


def train(
    documents: list[Document],
    utility: np.ndarray,
    count: int,
    folder: Path,
    tokenizer: Tokenizer,
    control: str = "",
    seed: int = 0,
    tokens: int = TOKENS,
) -> tuple[Rater, dict[str, Any]]:
    """A rater trained on `count` pairs of four fifths of the documents, and how it does on pairs of the others.

    Arguments:
        control: `shuffled` gives the labels of each pair to another one, `flipped` the opposite of each.
        tokens: that the rater reads of each text.
    """
    rng = np.random.default_rng(seed + 1)
    order = rng.permutation(len(documents))
    seen, unseen = order[: int(0.8 * len(order))], order[int(0.8 * len(order)) :]
    judgments = judge(documents, utility, rng.choice(seen, (count, 2)), rng)
    judgments = [each for each in judgments if each.ids[0] != each.ids[1]]
    if control == "shuffled":
        places = rng.permutation(len(judgments))
        judgments = [
            Judgment(each.texts, judgments[place].average, {}, each.ids)
            for each, place in zip(judgments, places, strict=True)
        ]
    if control == "flipped":
        judgments = [
            Judgment(each.texts, {name: _flip(matrix) for name, matrix in each.average.items()}, {}, each.ids)
            for each in judgments
        ]
    config = RaterConfig(
        max_tokens=tokens,
        batch_pairs=32,
        row_tokens=2 * tokens,
        lr=1e-3,
        epochs=3,
        validation=0.0,
        seed=seed,
        schedule={"kind": "cosine", "warmup_fraction": 0.02, "final_fraction": 0.1},
        trainer={"precision": "fp32"},
    )
    trained = train_rater(judgments, CRITERIA, tokenizer, config, folder, heldout=[])
    scores = trained.rater.rate([documents[number].text for number in unseen])
    test = judge(documents, utility, rng.choice(unseen, (2000, 2)), rng)
    place = {documents[number].id: row for row, number in enumerate(unseen)}
    test = [each for each in test if each.ids[0] != each.ids[1]]
    difference = np.array([scores[place[each.ids[1]]] - scores[place[each.ids[0]]] for each in test])
    labels = np.array([[each.average[name][0, 1] for name in CRITERIA] for each in test])
    figures = pair_metrics(difference, labels, CRITERIA, 2 * VOTES)
    for column, name in enumerate(CRITERIA):
        figures[name]["spearman"] = float(spearmanr(scores[:, column], utility[unseen, column])[0])
    return trained.rater, figures | {"training": trained.results["training"]}


def _flip(matrix: np.ndarray) -> np.ndarray:
    return np.where(matrix < 0, matrix, 1 - matrix)


class Trigram:
    """An interpolated trigram model of token ids (Witten & Bell 1991).

    A context of n tokens and the token after it are one number each, so that counts are sorted arrays.
    """

    def __init__(self, documents: list[list[int]], vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self._levels = []
        for order in range(3):
            both = np.concatenate([self._numbers(ids, order) for ids in documents])
            grams, counts = np.unique(both, return_counts=True)
            contexts, first = np.unique(grams // vocabulary, return_index=True)
            totals, kinds = np.add.reduceat(counts, first), np.diff(np.append(first, len(grams)))
            self._levels.append((grams, counts, contexts, totals, kinds))

    def _numbers(self, ids: list[int], order: int) -> np.ndarray:
        """The grams of `order` tokens and one more, a number each, [len(ids) - order]."""
        x = np.asarray(ids, np.int64)
        found = np.zeros(max(0, len(x) - order), np.int64)
        for place in range(order + 1):
            found = found * self.vocabulary + x[place : place + len(found)]
        return found

    def loss(self, ids: list[int]) -> float:
        """Summed negative log-likelihood in nats."""
        p = np.full(len(ids), 1 / self.vocabulary)
        for order, (grams, counts, contexts, totals, kinds) in enumerate(self._levels):
            both = self._numbers(ids, order)
            place = np.minimum(np.searchsorted(contexts, both // self.vocabulary), len(contexts) - 1)
            known = contexts[place] == both // self.vocabulary  # where it is not, no longer context is
            at = np.minimum(np.searchsorted(grams, both), len(grams) - 1)
            seen = np.where(grams[at] == both, counts[at], 0)
            finer = (seen + kinds[place] * p[order:]) / (totals[place] + kinds[place])
            p[order:] = np.where(known, finer, p[order:])
        return float(-np.log(p).sum())


def choose(
    pool: list[Document], encoded: list[list[int]], rating: np.ndarray, domains: bool, **options: Any
) -> list[int]:
    """Numbers of the documents that a way of choosing takes, 30 % of the tokens."""
    lengths = [len(ids) for ids in encoded]
    table = {"id": [each.id for each in pool], "length": lengths, "r": rating, "domain": [each.domain for each in pool]}
    settings = {"mode": "sample", "metric": "r", **options}
    found = select(table, tokens=int(0.3 * sum(lengths)), id="id", domain="domain" if domains else None, **settings)
    return np.asarray(found.table.column("row")).tolist()


ARMS: dict[str, dict[str, Any]] = {
    "uniform": {"mode": "uniform"},
    "tau=2": {"tau": 2.0},
    "tau=1": {"tau": 1.0},
    "tau=0.5": {"tau": 0.5},
    "tau=0.25": {"tau": 0.25},
    "top-k": {"mode": "top_k"},
    "oracle": {"mode": "top_k"},
    "inverse tau=0.5": {"tau": 0.5, "invert": True},
    "top-k by word length": {"mode": "top_k"},
}

NEURAL = ("uniform", "tau=2", "tau=1", "tau=0.5", "top-k", "inverse tau=0.5")
CURRICULA = {"curriculum, rising": False, "curriculum, falling": True}


def trigram_arms(
    pool: list[Document],
    levels: np.ndarray,
    rating: np.ndarray,
    heldout: list[Document],
    tokenizer: Tokenizer,
    arms: list[str],
    seed: int = 42,
) -> dict[str, dict[str, float]]:
    """Nats a token on the clean held-out documents, by arm and domain, and their mean."""
    encoded, tests = ([tokenizer.encode(each.text) for each in part] for part in (pool, heldout))
    lengths = np.array([word_length(each.text) for each in pool])
    found = {}
    for name in arms:
        values = {"oracle": -levels, "top-k by word length": lengths}.get(name, rating)
        chosen = choose(pool, encoded, values, True, seed=seed, **ARMS[name])
        model = Trigram([encoded[number] for number in chosen], tokenizer.vocab_size)
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for document, ids in zip(heldout, tests, strict=True):
            sums[document.domain][0] += model.loss(ids)
            sums[document.domain][1] += len(ids)
        by_domain = {domain: total / count for domain, (total, count) in sorted(sums.items())}
        found[name] = by_domain | {"mean": sum(by_domain.values()) / len(by_domain)}
    return found


def neural_arm(
    chosen: list[list[int]],
    tests: list[tuple[str, list[int]]],
    tokenizer: Tokenizer,
    folder: Path,
    seed: int,
    tokens: int,
    batch: int,
    shuffle: bool = True,
) -> float:
    """Nats a token of a small transformer trained once on the chosen documents, mean over domains."""
    import torch

    from lmlab.data import Loader
    from lmlab.models import ModelConfig, Transformer
    from lmlab.train import OptimizerConfig, Trainer, TrainerConfig, language_model_step

    width = 192
    flat = np.concatenate([np.array([tokenizer.bos_id, *ids]) for ids in chosen])
    flat = flat[: len(flat) // (width + 1) * (width + 1)].reshape(-1, width + 1)

    class Rows:
        def __len__(self) -> int:
            return len(flat)

        def __getitem__(self, index: int) -> dict[str, Any]:
            row = flat[index].astype(np.int64)
            return {"input_ids": row[:-1], "labels": row[1:], "document_ids": np.cumsum(row[:-1] == tokenizer.bos_id)}

    config = ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=2, d_model=128, num_heads=4, max_seq_len=512)
    model = Transformer(config).initialize(seed)
    settings = TrainerConfig(
        steps=max(1, min(tokens // width, len(flat)) // batch),
        batch_size=batch,
        precision="auto",
        optimizer=OptimizerConfig(learning_rate=2e-3),
        log_every=1000,
    )
    Trainer(model, language_model_step, Loader(Rows(), batch, seed, shuffle=shuffle), settings, folder).fit()
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    model.eval()
    with torch.no_grad():
        for domain, ids in tests:
            x = torch.tensor([[tokenizer.bos_id, *ids]])[:, :512]
            loss = model(x[:, :-1], labels_BT=x[:, 1:]).loss
            sums[domain][0] += float(loss.sum)
            sums[domain][1] += float(loss.count)
    return float(np.mean([total / count for total, count in sums.values()]))


def prepare(seed: int = 0) -> tuple[list[Document], np.ndarray, list[Document], Tokenizer]:
    """Pool with levels, clean held-out documents, and a tokenizer."""
    documents = pieces()
    order = np.random.default_rng(seed).permutation(len(documents))
    held = [documents[number] for number in order[: len(order) // 10]]
    pool, levels = spoil([documents[number] for number in order[len(order) // 10 :]], 0.4, seed + 2)
    tokenizer = Tokenizer.train((each.text for each in documents[:: max(1, len(documents) // 2500)]), 1024)
    return pool, levels, held, tokenizer


def neural_arms(
    pool: list[Document],
    ratings: np.ndarray,
    heldout: list[Document],
    tokenizer: Tokenizer,
    folder: Path,
    seed: int,
    tokens: int,
    batch: int,
) -> dict[str, float]:
    """Nats a token of small transformers by arm, on equally many tokens. Those of the curriculum read the uniform
    choice in the order of expertise.

    Arguments:
        ratings: of the pool by both criteria, [N, 2].
    """
    encoded = [tokenizer.encode(each.text) for each in pool]
    tests = [(each.domain, tokenizer.encode(each.text)) for each in heldout]
    found = {}
    for name in NEURAL:
        chosen = choose(pool, encoded, ratings[:, 0], True, seed=seed, **ARMS[name])
        found[name] = neural_arm(
            [encoded[number] for number in chosen], tests, tokenizer, folder / name, seed, tokens, batch
        )
    for name, descending in CURRICULA.items():
        chosen = choose(pool, encoded, ratings[:, 0], True, seed=seed, **ARMS["uniform"])
        table = pa.table({"id": [pool[number].id for number in chosen], "r": ratings[chosen, 1]})
        order = order_rows(table, "r", tau=2.0, seed=seed, descending=descending, id="id").column("row").to_pylist()
        ids = [encoded[chosen[row]] for row in order]
        found[name] = neural_arm(ids, tests, tokenizer, folder / name, seed, tokens, batch, shuffle=False)
    return found


def rated(
    world: tuple[list[Document], np.ndarray, list[Document], Tokenizer],
    options: argparse.Namespace,
    seed: int,
    folder: Path,
    results: dict[str, Any],
) -> np.ndarray:
    """Ratings of the pool by both criteria, [N, 2]; how good the rater is goes to `results`."""
    pool, levels, _, tokenizer = world
    utility = utilities(pool, levels)
    start = time.process_time()
    rater, figures = train(pool, utility, options.pairs, folder / "rater", tokenizer, seed=seed)
    results["rater"] = figures
    for name in CRITERIA:
        at = figures[name]["at"]
        print(
            f"{name:>10}: accuracy {at['0']['accuracy']:.3f} (ceiling {at['0']['ceiling']:.3f}), "
            f"at m=0.5 {at['0.5']['accuracy']:.3f}, "
            f"Spearman with the truth {figures[name]['spearman']:.3f}"
        )
    print(
        f"  trained in {time.process_time() - start:.0f} s of processor time,"
        f" {figures['training']['tokens_per_second']:,.0f} tokens/s",
        flush=True,
    )
    for control in ("shuffled", "flipped") if options.controls else ():
        _, found = train(pool, utility, options.pairs, folder / control, tokenizer, control, seed)
        results[control] = found
        for name in CRITERIA:
            print(
                f"{control} {name}: accuracy {found[name]['at']['0']['accuracy']:.3f}, Spearman"
                f" {found[name]['spearman']:.3f}"
            )
    return rater.rate([each.text for each in pool])


def one_seed(
    world: tuple[list[Document], np.ndarray, list[Document], Tokenizer],
    options: argparse.Namespace,
    seed: int,
    ratings: np.ndarray | None = None,
) -> tuple[dict[str, Any], np.ndarray]:
    """A rater, what trigram models and, if asked for, transformers make of its choices; all of one seed. Returns the
    figures, and the ratings of the pool.

    Arguments:
        ratings: of a rater that is trained already.
    """
    pool, levels, held, tokenizer = world
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if ratings is None:
            ratings = rated(world, options, seed, Path(folder), results)
        results["trigram"] = trigram_arms(pool, levels, ratings[:, 0], held, tokenizer, list(ARMS), 42 + seed)
        if options.neural:
            results["neural"] = neural_arms(
                pool, ratings, held, tokenizer, Path(folder), seed, options.neural_tokens, options.batch
            )
    return results, ratings


def summary(seeds: list[dict[str, Any]]) -> list[str]:
    """Mean and standard deviation over seeds of each arm, and of its difference to uniform within a seed."""
    lines = []
    for kind in ("trigram", "neural"):
        losses = {
            arm: [value["mean"] if isinstance(value, dict) else value for value in (seed[kind][arm] for seed in seeds)]
            for arm in seeds[0].get(kind, {})
        }
        for arm, found in losses.items():
            gap = np.subtract(found, losses["uniform"])
            if len(seeds) == 1:
                lines.append(f"{kind} {arm:>22}: {found[0]:.3f} nats/token, {gap[0]:+.3f} to uniform")
                continue
            lines.append(
                f"{kind} {arm:>22}: {np.mean(found):.3f} +- {np.std(found, ddof=1):.3f} nats/token, "
                f"{np.mean(gap):+.3f} +- {np.std(gap, ddof=1):.3f} to uniform ({len(seeds)} seeds)"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=1, help="of rater, noise and models")
    parser.add_argument("--one-rater", action="store_true", help="that of the first seed chooses for all of them")
    parser.add_argument("--controls", action="store_true", help="also train on shuffled and on opposite labels")
    parser.add_argument("--neural", action="store_true", help="also train small transformers")
    parser.add_argument("--neural-tokens", type=int, default=300_000, help="at most; one pass over the choice")
    parser.add_argument("--batch", type=int, default=16, help="rows of 192 tokens of the transformers' steps")
    parser.add_argument("--out", type=Path, help="a file of results; seeds that it holds are not run again")
    options = parser.parse_args()
    world = prepare()
    settings = {
        name: getattr(options, name) for name in ("pairs", "neural", "controls", "one_rater", "neural_tokens", "batch")
    }
    results: dict[str, Any] = {"pieces": len(world[0]), "held_out": len(world[2]), "settings": settings, "seeds": []}
    if options.out and options.out.exists():
        found = json.loads(options.out.read_text())
        if found["settings"] != settings:
            parser.error(f"{options.out} holds results of {found['settings']}")
        results = found
    kept = np.array(results["ratings"]) if "ratings" in results else None
    while (seed := len(results["seeds"])) < options.seeds:
        found, ratings = one_seed(world, options, seed, kept)
        results["seeds"].append(found)
        if options.one_rater and kept is None:
            kept, results["ratings"] = ratings, ratings.tolist()
        if options.out:
            options.out.write_text(json.dumps(results, indent=2))
    print("\n".join(summary(results["seeds"])))


if __name__ == "__main__":
    main()
