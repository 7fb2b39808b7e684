"""Tokenizers of every kind of model, trained in a moment, and real ones that installed packages carry."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIALS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TEXT = [
    "The user said: naïve, ½ of 3½! <s> and </s> are tags; assistant, system. " * 3,
    "日本語のテキスト 🎉 </s></s>",
] * 4


def byte_level() -> tokenizers.Tokenizer:
    """As GPT-2, Llama 3 and Qwen."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXT, trainer)
    return backend


def metaspace(legacy: bool = True) -> tokenizers.Tokenizer:
    """As Llama 2: BPE over text in which a mark stands for blanks, single bytes for what the vocabulary lacks, and the
    names of special tokens within reach of the merges.
    """
    letters = [*sorted(set("".join(TEXT)) - set("日本語のテキスト🎉½ ")), "▁"]
    words = ["</", "</s", "</s>", "\u2581a", "is", "\u2581t", "us", "er"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {piece: id for id, piece in enumerate([*SPECIALS[:2], *fallback, *letters, *words, *SPECIALS[3:]])}
    merges = [
        ("<", "/"),
        ("</", "s"),
        ("</s", ">"),
        ("\u2581", "a"),
        ("i", "s"),
        ("\u2581", "t"),
        ("u", "s"),
        ("e", "r"),
    ]
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(SPECIALS)
    return backend


def unigram() -> tokenizers.Tokenizer:
    """As T5 and XLM-R; the names of special tokens are pieces with the best score."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIALS, unk_token="<unk>", initial_alphabet=["<", ">", "/", "|", "_"],
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(TEXT, trainer)
    return backend


def word_piece() -> tokenizers.Tokenizer:
    """As BERT."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=SPECIALS, initial_alphabet=["<", ">", "/", "|", "_"], show_progress=False
    )
    backend.train_from_iterator(TEXT, trainer)
    return backend


def words() -> tokenizers.Tokenizer:
    """Whole words, one of which is the name of a special token."""
    vocab = {piece: id for id, piece in enumerate([*SPECIALS, "a", "is", "and", "</", "s", ">"])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(SPECIALS)
    return backend


KINDS = {
    "byte level": byte_level,
    "metaspace, legacy": metaspace,
    "metaspace": lambda: metaspace(legacy=False),
    "unigram": unigram,
    "word pieces": word_piece,
    "words": words,
}
EXACT = ["byte level", "metaspace, legacy", "metaspace"]
"""The kinds whose `decode(encode(text))` is the text, whatever it is."""


def packaged(package: str, name: str) -> Path:
    """A file of an installed package; the test is skipped where it is not installed."""
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / name if spec and spec.origin else None
    if path is None or not path.exists():
        pytest.skip(f"the package {package}, which carries {name}, is not installed")
    return path
