"""A rater is asked for a quality whose true value is known, and its choices are judged by the loss of language models
trained on them.

Real text is cut into pieces, of which most are spoiled by letters that are exchanged at random. A simulated judge with
a preference for the second place votes on pairs by the true quality. A small rater learns from the votes (part 1), and
rates a pool of spoiled and clean pieces; a trigram model, and with --neural a small transformer over three seeds, learn
from what each way of choosing takes of the pool, at equal tokens (part 2).

    python benchmarks/qurating_known_answer.py --pairs 1000
    python benchmarks/qurating_known_answer.py --pairs 4000 --neural
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from lmlab.data import Document, JsonlSource, Tokenizer
from lmlab.judging import Judgment, soft_labels
from lmlab.methods.qurating import Rater, RaterConfig, select, train_rater
from lmlab.methods.qurating.rating.metrics import pair_metrics

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
) -> tuple[Rater, dict[str, Any]]:
    """A rater trained on `count` pairs of four fifths of the documents, and how it does on pairs of the others.

    Arguments:
        control: `shuffled` gives the labels of each pair to another one, `flipped` the opposite of each.
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
        max_tokens=TOKENS,
        batch_pairs=32,
        row_tokens=2 * TOKENS,
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
    """An interpolated trigram model of token ids (Witten & Bell 1991)."""

    def __init__(self, documents: list[list[int]], vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.counts: list[dict[Any, Counter[int]]] = [defaultdict(Counter) for _ in range(3)]
        for ids in documents:
            for place, token in enumerate(ids):
                for order in range(min(3, place + 1)):
                    self.counts[order][tuple(ids[place - order : place])][token] += 1
        self.totals = [{context: sum(found.values()) for context, found in level.items()} for level in self.counts]

    def loss(self, ids: list[int]) -> float:
        """Summed negative log-likelihood in nats."""
        total = 0.0
        for place, token in enumerate(ids):
            p = 1 / self.vocabulary
            for order in range(min(3, place + 1)):
                context = tuple(ids[place - order : place])
                found = self.counts[order].get(context)
                if found is None:
                    break
                seen, kinds = self.totals[order][context], len(found)
                p = (found.get(token, 0) + kinds * p) / (seen + kinds)
            total -= math.log(p)
        return total


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
) -> float:
    """Nats a token of a small transformer trained on the chosen documents, mean over domains."""
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
        steps=max(1, tokens // (16 * width)),
        batch_size=16,
        precision="auto",
        optimizer=OptimizerConfig(learning_rate=2e-3),
        log_every=1000,
    )
    Trainer(model, language_model_step, Loader(Rows(), 16, seed), settings, folder).fit()
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--controls", action="store_true", help="also train on shuffled and on opposite labels")
    parser.add_argument("--neural", action="store_true", help="also train small transformers, three seeds an arm")
    parser.add_argument("--neural-tokens", type=int, default=600_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    pool, levels, held, tokenizer = prepare()
    utility = utilities(pool, levels)
    results: dict[str, Any] = {"pieces": len(pool), "held_out": len(held), "pairs": options.pairs}
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        rater, figures = train(pool, utility, options.pairs, Path(folder) / "rater", tokenizer)
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
            f" {figures['training']['tokens_per_second']:,.0f} tokens/s"
        )
        for control in ("shuffled", "flipped") if options.controls else ():
            _, found = train(pool, utility, options.pairs, Path(folder) / control, tokenizer, control)
            results[control] = found
            for name in CRITERIA:
                print(
                    f"{control} {name}: accuracy {found[name]['at']['0']['accuracy']:.3f}, Spearman"
                    f" {found[name]['spearman']:.3f}"
                )
        rating = rater.rate([each.text for each in pool])[:, 0]
        arms = trigram_arms(pool, levels, rating, held, tokenizer, list(ARMS))
        results["trigram"] = arms
        for name, values in arms.items():
            print(
                f"{name:>22}: {values['mean']:.3f} nats/token   "
                + "  ".join(f"{d} {v:.2f}" for d, v in values.items() if d != "mean")
            )
        if options.neural:
            results["neural"] = {}
            encoded = [tokenizer.encode(each.text) for each in pool]
            tests = [(each.domain, tokenizer.encode(each.text)) for each in held]
            for name in ("uniform", "tau=1", "tau=0.5", "top-k", "inverse tau=0.5"):
                losses = []
                for seed in range(3):
                    chosen = [
                        encoded[number] for number in choose(pool, encoded, rating, True, seed=seed, **ARMS[name])
                    ]
                    losses.append(
                        neural_arm(
                            chosen, tests, tokenizer, Path(folder) / f"{name}-{seed}", seed, options.neural_tokens
                        )
                    )
                results["neural"][name] = losses
                print(
                    f"{name:>22}: {np.mean(losses):.3f} +- {np.std(losses, ddof=1):.3f} nats/token over 3 seeds"
                    " (neural)",
                    flush=True,
                )
    if options.out:
        options.out.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
