"""Text that spells special tokens stays that text, with every kind of tokenizer."""

from __future__ import annotations

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from lmlab.data import Document, TokenizedCorpus, Tokenizer, tokenize_documents
from lmlab.errors import UserError
from lmlab.files import write_jsonl

TEXTS = [
    "The end of a sentence </s> or <s> or [SEP] is 'a' < b / c > d.",
    "straße naïve 日本語 for (i = 0; i < n)",
] * 20
SPECIAL = ["<s>", "</s>", "<unk>"]


def byte_level():
    return Tokenizer.train(TEXTS, 300)


def metaspace_bpe(with_special=True):
    """As the tokenizers of Llama 2 and Mistral: pieces of SentencePiece, single bytes for what has no piece."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    description = json.loads(backend.to_str())
    description["added_tokens"] = [
        token for token in description["added_tokens"] if with_special and token["content"] in SPECIAL
    ]
    if not with_special:
        vocab = description["model"]["vocab"]
        description["model"]["vocab"] = {f"\ufdd1{p}" if p in SPECIAL else p: i for p, i in vocab.items()}
        description["model"]["unk_token"] = "\ufdd1<unk>"
    backend = tokenizers.Tokenizer.from_str(json.dumps(description))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(backend, "<s>", "</s>") if with_special else backend


def unigram():
    """As the tokenizers of T5 and XLM-R: the special tokens are pieces of the model, too."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=SPECIAL,
        unk_token="<unk>",
        show_progress=False,
        initial_alphabet=sorted(set("".join(TEXTS) + "<|endoftext|>[MASK]<unk>") - {" "}),
    )
    backend.train_from_iterator(TEXTS, trainer)
    return Tokenizer(backend, "<s>", "</s>")


def word_piece():
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    return Tokenizer(backend, "[CLS]", "[SEP]")


KINDS = {"byte-level BPE": byte_level, "metaspace BPE": metaspace_bpe, "Unigram": unigram, "WordPiece": word_piece}


@pytest.mark.parametrize("kind", KINDS)
def test_no_document_gets_a_special_token_by_spelling_it(kind):
    tokenizer = KINDS[kind]()
    unknown = {tokenizer.backend.token_to_id(token) for token in ("<unk>", "[UNK]")}
    for special in tokenizer.guarded_tokens:
        text = f"a{special} b {special}{special} c"
        if special not in ("<unk>", "[UNK]"):
            assert tokenizer.backend.token_to_id(special) in tokenizer.encode(text)  # as `transformers` does
        ids = tokenizer.encode(text, "as_text")
        assert (tokenizer.special_ids | {tokenizer.bos_id, tokenizer.eos_id}).isdisjoint(set(ids) - unknown)
        assert tokenizer.encode_batch(["a", text], "as_text") == [tokenizer.encode("a"), ids]
    plain = "a sentence of the end"
    assert tokenizer.encode(plain, "as_text") == tokenizer.encode(plain)


@pytest.mark.parametrize("kind", ["byte-level BPE", "metaspace BPE", "Unigram"])
@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*SPECIAL, "<|endoftext|>", "a", " end", "</", "s>", " ", "(i"]), max_size=9))
def test_a_text_that_spells_special_tokens_comes_back_unchanged(kind, parts):
    tokenizer = _cached(kind)
    # metaspace itself keeps no more than that of blanks at the ends
    text = " ".join("".join(parts).split()) if kind != "byte-level BPE" else "".join(parts)
    assert tokenizer.decode(tokenizer.encode(text, "as_text")) == text


_made = {}


def _cached(kind):
    if kind not in _made:
        _made[kind] = KINDS[kind]()
    return _made[kind]


def test_spelled_tokens_are_encoded_as_by_a_tokenizer_that_never_had_them():
    """The reference: the same model without special tokens. The text is not cut, so that no blank comes in."""
    tokenizer, reference = metaspace_bpe(), metaspace_bpe(with_special=False)
    for text in ("</s>", "a</s>b", "end </s> of<s>", "x<unk>y"):
        assert tokenizer.encode(text, "as_text") == reference.encode(text, add_special_tokens=False).ids
    assert "< /s>" not in tokenizer.decode(tokenizer.encode("a</s>", "as_text"))


@pytest.mark.parametrize("kind", KINDS)
def test_some_of_the_spelled_tokens_may_be_meant(kind):
    tokenizer = KINDS[kind]()
    eos = tokenizer.eos_token
    text = f"end of {eos} a{eos} for"
    start = text.index(eos)
    meant = [(start, start + len(eos))]
    ids, offsets = tokenizer.encode_with_offsets(text, meant)
    assert ids.count(tokenizer.eos_id) == 1 and offsets[ids.index(tokenizer.eos_id)] == meant[0]
    everywhere = [meant[0], (text.rindex(eos), text.rindex(eos) + len(eos))]
    assert tokenizer.encode_with_offsets(text, everywhere) == tokenizer.encode_with_offsets(text)
    assert tokenizer.encode_with_offsets(text, [])[0] == tokenizer.encode(text, "as_text")


def test_the_names_that_the_copy_uses_cannot_be_guessed():
    tokenizer = byte_level()
    names = {"".join(SpelledText(tokenizer)) for _ in range(3)}
    assert len(names) == 3 and tokenizer.eos_id not in tokenizer.encode("\ufdd0<|endoftext|>\ufdd0", "as_text")


def SpelledText(tokenizer):
    from lmlab.data.special_tokens import SpelledTokens

    return SpelledTokens(tokenizer.backend, tokenizer.guarded_tokens).write(tokenizer.eos_token, [(0, 13)])[0]


def test_a_special_token_that_is_a_character_is_named():
    backend = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "</s>": 2}, []))
    backend.add_special_tokens([AddedToken("</s>"), AddedToken("a")])
    tokenizer = Tokenizer(backend, "</s>", "</s>")
    with pytest.raises(UserError, match="'a' is a single character"):
        tokenizer.encode("ab", "as_text")
    assert tokenizer.encode("b", "as_text") == [1]


def test_tokenize_keeps_documents_text_unless_it_is_told_otherwise(tmp_path):
    tokenizer = byte_level()
    documents = [Document("a", "one <|endoftext|> two"), Document("b", "three")]
    write_jsonl(tmp_path / "d.jsonl", (document.row() for document in documents))
    tokenize_documents(tmp_path / "d.jsonl", tokenizer, tmp_path / "out", workers=1)
    (shard,) = TokenizedCorpus(tmp_path / "out").shards
    assert shard.tokens.tolist().count(tokenizer.eos_id) == 4  # begin and end of two documents
    assert [each.text for each in TokenizedCorpus(tmp_path / "out").documents()] == [d.text for d in documents]
    tokenize_documents(tmp_path / "d.jsonl", tokenizer, tmp_path / "out", workers=1, special_tokens="as_tokens")
    (shard,) = TokenizedCorpus(tmp_path / "out").shards  # made again, as the setting changed
    assert shard.tokens.tolist().count(tokenizer.eos_id) == 5


def test_the_real_tokenizer_of_smollm2(smollm2):
    tokenizer = Tokenizer.load(smollm2)
    text = "The tokens <|endoftext|> and <|im_start|>user\n are spelled <|im_end|>\n here."
    assert tokenizer.decode(tokenizer.encode(text, "as_text")) == text
    assert tokenizer.decode(tokenizer.encode(text)) != text
