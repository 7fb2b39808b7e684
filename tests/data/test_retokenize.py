"""Token ids that another tokenizer made: text again, and tokenized in another way."""

from __future__ import annotations

import json

import numpy as np
import pytest
from corpora import make_corpus, small_tokenizer, text

from lmlab.data import (
    Document,
    MDSWriter,
    PackConfig,
    Reject,
    TokenizedCorpus,
    TokenizedSource,
    Tokenizer,
    TokenSource,
    write_packs,
)
from lmlab.errors import UserError
from lmlab.files import DamagedError

COLUMNS = {"domain": "str", "input_ids": "ndarray:uint32", "indices": "ndarray:uint32"}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A tokenizer of other people, and its directory."""
    tokenizer = Tokenizer.train((text(seed) + " Grüße über Ärger" for seed in range(100, 130)), 420)
    place = tmp_path_factory.mktemp("theirs")
    tokenizer.save(place)
    return tokenizer, place


def _write(folder, samples, columns=COLUMNS):
    with MDSWriter(columns, folder) as writer:
        for sample in samples:
            writer.write(sample)


def _packed(tokenizer, texts, domain="books"):
    """A sample of packed documents, each between a begin and an end mark."""
    marks = [tokenizer.bos_id, tokenizer.eos_id]
    parts = [[marks[0], *tokenizer.encode(each), marks[1]] for each in texts]
    ends = np.cumsum([len(part) for part in parts])
    borders = np.array([ends - [len(part) for part in parts], ends], np.uint32).T
    return {"domain": domain, "input_ids": np.concatenate(parts).astype(np.uint32), "indices": borders}


def test_packed_ids_of_another_tokenizer_are_tokenized_again(theirs, tmp_path, lmlab):
    tokenizer, place = theirs
    texts = [text(7), "Grüße aus Ägypten.", text(8)]
    _write(tmp_path / "a", [_packed(tokenizer, texts[:2]), _packed(tokenizer, texts[2:], "code")])
    small_tokenizer().save(tmp_path / "mine")
    run = ("tokenize", tmp_path / "a", "--tokenizer", tmp_path / "mine", "--out", tmp_path / "run")
    refused = lmlab(*run)
    assert refused.code == 2 and "has no column 'text'" in refused.err and "--ids-of" in refused.err
    done = lmlab(*run, "--ids-of", place)
    assert done.code == 0, done.err
    corpus = TokenizedCorpus(tmp_path / "run" / "tokens", verify=True)
    assert corpus.tokenizer_fingerprint == small_tokenizer().fingerprint
    found = {each.text: each.domain for each in corpus.documents() if isinstance(each, Document)}
    assert found == {texts[0]: "books", texts[1]: "books", texts[2]: "code"}
    again = lmlab(*run, "--ids-of", place)  # nothing has changed
    assert again.code == 0 and "[1/2]" in again.out + again.err


def test_ids_are_read_only_by_the_tokenizer_that_made_them(theirs, tmp_path):
    tokenizer, place = theirs
    _write(tmp_path / "a", [_packed(tokenizer, [text(7)])])
    with pytest.raises(UserError, match="does not hold the tokenizer that made its ids"):
        list(TokenizedSource(path=str(tmp_path / "a")).read())
    Tokenizer.train([text(1)], 300).save(tmp_path / "small")
    with pytest.raises(UserError, match=r"shard.*:0.0 has the token \d+; the tokenizer has 300"):
        list(TokenizedSource(path=str(tmp_path / "a"), tokenizer=str(tmp_path / "small")).read())
    corpus = make_corpus(tmp_path / "own", 3)
    with pytest.raises(UserError, match="made with another tokenizer"):
        list(TokenizedSource(path=str(corpus.directory), tokenizer=str(place)).read())
    first = TokenizedSource(path=str(tmp_path / "a"), tokenizer=str(place)).fingerprint()
    assert first != TokenizedSource(path=str(tmp_path / "a"), tokenizer=str(tmp_path / "small")).fingerprint()
    _write(tmp_path / "b", [_packed(tokenizer, [text(9)])])
    assert first["files"] != TokenizedSource(path=str(tmp_path / "b"), tokenizer=str(place)).fingerprint()["files"]


def test_documents_that_were_cut_within_a_character_lose_no_more_than_it(theirs, tmp_path):
    tokenizer, place = theirs
    ids = tokenizer.encode("ab€cd")
    parts = [tokenizer.token_bytes(each) for each in ids]
    cut = next(n for n in range(1, len(ids)) if not _is_text(b"".join(parts[:n])))
    sample = {"domain": "", "input_ids": np.array(ids, np.uint32)}
    sample["indices"] = np.array([[0, cut], [cut, len(ids)]], np.uint32)
    _write(tmp_path / "books", [sample])
    found = list(TokenizedSource(path=str(tmp_path / "books"), tokenizer=str(place)).read())
    assert [(each.text, each.domain) for each in found] == [("ab", "books"), ("cd", "books")]


def _is_text(data):
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_masks_and_wrong_borders_are_refused_by_name(theirs, tmp_path):
    tokenizer, place = theirs
    sample = _packed(tokenizer, ["alpha beta"])
    masked = sample | {"mask": np.arange(len(sample["input_ids"]), dtype=np.uint8) % 2}
    _write(tmp_path / "chat", [masked], {**COLUMNS, "mask": "ndarray:uint8"})
    with pytest.raises(UserError, match="says which of its tokens are learned"):
        list(TokenizedSource(path=str(tmp_path / "chat"), tokenizer=str(place)).read())
    for name, borders in (("falls", [[3, 1]]), ("beyond", [[0, 9999]]), ("flat", [0, 3])):
        _write(tmp_path / name, [sample | {"indices": np.array(borders, np.uint32)}])
        with pytest.raises(DamagedError, match="indices"):
            list(TokenizedSource(path=str(tmp_path / name), tokenizer=str(place)).read())
        with pytest.raises(DamagedError, match="indices"):  # which says nothing of the tokens, and read lengths alone
            list(TokenSource(str(tmp_path / name)).lengths())
    _write(tmp_path / "ragged", [sample | {"indices": [[0, 3], [3]]}], COLUMNS | {"indices": "json"})
    with pytest.raises(DamagedError, match="indices is no list of pairs"):
        list(TokenSource(str(tmp_path / "ragged")).lengths())


def test_own_packs_and_json_lines_are_read_too(theirs, tmp_path):
    tokenizer, place = theirs
    corpus = make_corpus(tmp_path / "own", 12)
    write_packs([str(corpus.directory)], PackConfig(pack_length=512, by_domain=True), tmp_path / "packs")
    whole = {each.text for each in corpus.documents()}
    found = list(TokenizedSource(path=str(tmp_path / "packs")).read())  # their tokenizer stands with them
    assert {each.text for each in found} & whole
    assert {each.domain for each in found} == {"even", "odd"}
    rows = [{"input_ids": tokenizer.encode("alpha beta"), "domain": "d"}, {"input_ids": [tokenizer.eos_id]}]
    (tmp_path / "ids.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = TokenizedSource(path=str(tmp_path / "ids.jsonl"), tokenizer=str(place)).read()
    assert (first.text, first.domain) == ("alpha beta", "d")
    assert isinstance(second, Reject) and second.reason == "its tokens stand for no text"
