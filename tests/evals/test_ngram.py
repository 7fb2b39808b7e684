"""Facts about the byte n-gram model, checked against a slow dictionary implementation of the textbook formula."""

import math
import random
import sysconfig
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from lmlab.evals.baselines import ngram
from lmlab.evals.baselines.ngram import MAX_ORDER, ByteNGram, modified_discounts

STDLIB = Path(sysconfig.get_path("stdlib"))
ORDERS = range(1, MAX_ORDER + 1)
END = 256


class SlowKneserNey:
    """Modified Kneser-Ney of Chen & Goodman (1999), written with tuples, sets and recursion."""

    def __init__(self, documents: list[bytes], order: int) -> None:
        self.order = order
        self.counts: dict[int, Counter[tuple[int, ...]]] = {order: Counter()}
        for document in documents:
            symbols = [END] * (order - 1) + list(document) + [END]
            self.counts[order].update(tuple(symbols[i : i + order]) for i in range(len(symbols) - order + 1))
        for length in range(order - 1, 0, -1):
            before = defaultdict(set)
            for gram in self.counts[length + 1]:
                before[gram[1:]].add(gram[0])
            self.counts[length] = Counter({gram: len(symbols) for gram, symbols in before.items()})
        self.discounts = {length: self.discount(Counter(c.values())) for length, c in self.counts.items()}
        self.followers: dict[tuple[int, ...], list[int]] = defaultdict(list)  # counts of what follows a context
        for counts in self.counts.values():
            for gram, count in counts.items():
                self.followers[gram[:-1]].append(count)

    @staticmethod
    def discount(n: Counter[int]) -> dict[int, float]:
        y = n[1] / (n[1] + 2 * n[2]) if n[1] + n[2] else 0
        result = {}
        for i in (1, 2, 3):
            d = i - (i + 1) * y * n[i + 1] / n[i] if n[i] else -1
            result[i] = d if 0 < d < i else i / 2
        return result

    def probability(self, symbol: int, context: tuple[int, ...]) -> float:
        """p(symbol | context); the context has at most order - 1 symbols."""
        length = len(context) + 1
        shorter = self.probability(symbol, context[1:]) if context else 1 / 257
        following = self.followers.get(context)
        if following is None:
            return shorter
        d = self.discounts[length]
        count = self.counts[length][*context, symbol]
        kept = count - d[min(count, 3)] if count else 0
        n1, n2 = following.count(1), following.count(2)
        backoff = d[1] * n1 + d[2] * n2 + d[3] * (len(following) - n1 - n2)
        return (kept + backoff * shorter) / sum(following)

    def log2_probabilities(self, document: bytes) -> list[float]:
        """One for each byte and one for the end."""
        symbols = [END] * (self.order - 1) + list(document) + [END]
        starts = range(len(symbols) - self.order + 1)
        grams = [tuple(symbols[i : i + self.order]) for i in starts]
        return [math.log2(self.probability(gram[-1], gram[:-1])) for gram in grams]


def random_documents(seed: int, alphabet: bytes, sizes: list[int]) -> list[bytes]:
    rng = random.Random(seed)
    return [bytes(rng.choices(alphabet, k=size)) for size in sizes]


@cache
def source(*names: str) -> list[bytes]:
    return [(STDLIB / f"{name}.py").read_bytes() for name in names]


def all_probabilities(model: ByteNGram, context: bytes) -> np.ndarray:
    """p(symbol | context) of the 256 bytes and of the end; [257]."""
    logs = [model.log2_probabilities(bytes([byte]), context)[0] for byte in range(256)]
    return np.exp2([*logs, *model.log2_probabilities(b"", context, include_end=True)])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "context", [b"", b"s", b"self.", b"return self.", b"\xff", b"\xfe\xff" * 4, b"zqself", b"\n\xffx"]
)
def test_probabilities_sum_to_one(order: int, context: bytes) -> None:
    model = ByteNGram.fit([text[:5_000] for text in source("ast", "enum", "queue")], order)
    probabilities = all_probabilities(model, context)
    assert probabilities.min() > 0
    assert probabilities.sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("alphabet", [b"ab", b"abcdefgh", b"\x00\x01\x7f\x80\xff", bytes(range(256))])
def test_equals_the_textbook_formula_on_random_text(order: int, alphabet: bytes) -> None:
    train = random_documents(order, alphabet, [300, 0, 1, 2, 40, 5])
    test = [*random_documents(order + 100, alphabet + b"z", [60, 1, 0]), train[0], train[2]]
    assert_equals_the_textbook_formula(train, test, order)


@pytest.mark.parametrize("order", ORDERS)
def test_equals_the_textbook_formula_on_real_text(order: int) -> None:
    train = [text[:4_000] for text in source("ast", "enum")]
    assert_equals_the_textbook_formula(train, [source("queue")[0][:2_000], train[0][:500]], order)


@pytest.mark.parametrize(
    "train", [[b"a"], [b"aaaaaaaa"], [b"aa", b"aa", b"aa", b"aa"], [b"ab", b"", b"", b""], [b"\x00"]]
)
@pytest.mark.parametrize("order", ORDERS)
def test_degenerate_corpora_still_give_the_formula(train: list[bytes], order: int) -> None:
    test = [b"", b"a", b"ab", b"aaaa", b"zzz", b"\x00\x00"]
    assert_equals_the_textbook_formula(train, test, order)
    assert all_probabilities(ByteNGram.fit(train, order), b"a").sum() == pytest.approx(1, abs=1e-9)


def assert_equals_the_textbook_formula(train: list[bytes], test: list[bytes], order: int) -> None:
    model, reference = ByteNGram.fit(train, order), SlowKneserNey(train, order)
    assert model.order == order
    assert model.num_ngrams == sum(len(counts) for counts in reference.counts.values())
    for document in test:
        expected = reference.log2_probabilities(document)
        np.testing.assert_allclose(model.log2_probabilities(document, include_end=True), expected, rtol=0, atol=1e-9)
        assert model.log2_probabilities(document).shape == (len(document),)


def test_unigrams_by_hand() -> None:
    # a 4 times, b 3, c and d twice, e, f and the end once, so n1 = 3, n2 = 2, n3 = 1, n4 = 1; Y = 3/7;
    # D1 = 1 - 2 (3/7) 2/3 = 3/7, D2 = 2 - 3 (3/7) 1/2 = 19/14, D3+ = 3 - 4 (3/7) 1/1 = 9/7; 14 events.
    model = ByteNGram.fit([b"aaaabbbccddef"], order=1)
    backoff = (3 * 3 / 7 + 2 * 19 / 14 + 2 * 9 / 7) / 14
    kept = {"a": 4 - 9 / 7, "b": 3 - 9 / 7, "c": 2 - 19 / 14, "e": 1 - 3 / 7, "z": 0}
    expected = [kept[symbol] / 14 + backoff / 257 for symbol in "abcez"]
    np.testing.assert_allclose(np.exp2(model.log2_probabilities(b"abcez")), expected, atol=1e-12)
    assert model.num_ngrams == 7


def test_discounts_by_hand_and_where_the_estimate_fails() -> None:
    counts = np.repeat([1, 2, 3, 4, 9], [10, 5, 4, 2, 7])
    assert modified_discounts(counts) == pytest.approx((1 - 2 * 0.5 * 0.5, 2 - 3 * 0.5 * 0.8, 3 - 4 * 0.5 * 0.5))
    assert modified_discounts(np.array([1, 1])) == (0.5, 1.0, 1.5)  # no pairs
    assert modified_discounts(np.array([2, 2, 3])) == (0.5, 1.0, 1.5)  # no singletons
    assert modified_discounts(np.array([7])) == (0.5, 1.0, 1.5)
    # No n-gram counted four times would make D3+ = 3, and 2 - 3 (100/102) 1000/1 is negative.
    assert modified_discounts(np.repeat([1, 2, 3], [100, 1, 1000])) == pytest.approx((100 / 102, 1.0, 1.5))


def test_all_documents_at_once_equal_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ByteNGram.fit(source("ast", "enum"), order=5)
    text = source("queue")[0]
    documents = [b"", text, b"", b"x", *(text[i : i + 37] for i in range(0, 2_000, 37)), b""]
    for include_end in (False, True):
        expected = [model.score(document, include_end=include_end) for document in documents]
        for batch_symbols in (1 << 22, 100, 1):
            monkeypatch.setattr(ngram, "_BATCH_SYMBOLS", batch_symbols)
            np.testing.assert_allclose(model.bits(documents, include_end=include_end), expected, rtol=1e-12)
    assert model.bits([]).shape == (0,)


def test_empty_documents_cost_nothing_but_their_end() -> None:
    model = ByteNGram.fit([b"ab", b""], order=3)
    assert model.log2_probabilities(b"").shape == (0,)
    assert model.score(b"") == 0
    assert model.bits([b"", b""]).tolist() == [0, 0]
    assert model.score(b"", include_end=True) > 0


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("split", [0, 1, 3, 6, 50])
def test_context_gives_the_tail_of_the_joined_text(order: int, split: int) -> None:
    model = ByteNGram.fit(source("enum"), order)
    text = source("queue")[0][:300]
    joined = model.log2_probabilities(text)
    np.testing.assert_array_equal(model.log2_probabilities(text[split:], context=text[:split]), joined[split:])
    assert model.score(text[split:], text[:split]) == pytest.approx(-joined[split:].sum())


def test_a_context_never_seen_leaves_all_to_the_shorter_one() -> None:
    model = ByteNGram.fit(source("enum"), order=5)
    unseen = model.log2_probabilities(b"e", context=b"\xff\xff\xff\xff")
    np.testing.assert_allclose(model.log2_probabilities(b"e", context=b"\xfe\xfe\xfe\xfe"), unseen, rtol=1e-15)
    # Only the longest seen suffix of a context matters.
    one = model.log2_probabilities(b"f", context=b"\xff\xffel")
    np.testing.assert_allclose(model.log2_probabilities(b"f", context=b"\xfe\xfeel"), one, rtol=1e-15)


def test_longer_contexts_predict_held_out_source_better() -> None:
    train = source("ast", "argparse", "datetime", "decimal", "difflib", "enum", "inspect", "tarfile", "typing")
    held_out = source("optparse")
    size = sum(len(text) for text in held_out)
    figures = [ByteNGram.fit(train, order).bits(held_out).sum() / size for order in range(1, 6)]
    assert figures == sorted(figures, reverse=True)
    assert figures[0] > 4
    assert figures[-1] < 2.5


def test_a_near_certainty_is_not_more_than_certain() -> None:
    model = ByteNGram.fit([b"a" * 300_000], order=7)
    logs = model.log2_probabilities(b"a" * 1_000)
    assert logs.max() <= 0
    assert 0 <= model.score(b"aa", context=b"a" * 9) < 1e-4


def test_the_order_of_documents_does_not_matter() -> None:
    documents = [text[:3_000] for text in source("ast", "enum", "queue")]
    forward, backward = ByteNGram.fit(documents, 4), ByteNGram.fit(iter(documents[::-1]), 4)
    text = source("heapq")[0]
    np.testing.assert_array_equal(forward.log2_probabilities(text), backward.log2_probabilities(text))


@pytest.mark.parametrize("order", [-1, 0, 8])
def test_order_out_of_range_is_an_error(order: int) -> None:
    with pytest.raises(ValueError, match=f"order must be between 1 and 7, not {order}"):
        ByteNGram.fit([b"text"], order)


@pytest.mark.parametrize("documents", [[], [b""], [b"", b""]])
def test_a_corpus_without_bytes_is_an_error(documents: list[bytes]) -> None:
    with pytest.raises(ValueError, match="hold no bytes"):
        ByteNGram.fit(documents)
