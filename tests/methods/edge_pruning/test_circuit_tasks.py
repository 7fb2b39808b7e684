"""Tasks that are generated: valid for every kind of tokenizer, and disjoint between splits."""

from __future__ import annotations

import itertools
import json

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from lmlab.data.tokenizer import END_OF_TEXT, Tokenizer
from lmlab.errors import UserError
from lmlab.methods.edge_pruning import TASKS, generate, read_examples
from lmlab.methods.edge_pruning.examples.tasks import IOI_TEMPLATES
from lmlab.methods.edge_pruning.examples.words import COLORS, EVENTS, HABITS, MEN, OBJECTS, PLACES, SPANS, THINGS, WOMEN

_TEXT = " ".join(
    [
        *(text.replace("{", " ").replace("}", " ") for text in IOI_TEMPLATES),
        *(f"to {name} {name} and {name}," for name in (*WOMEN, *MEN)),
        *(habit for habits in HABITS.values() for habit in habits),
        *PLACES,
        *OBJECTS,
        *EVENTS,
        *SPANS,
        *COLORS,
        *THINGS,
        "So she he True False ( True and False ) or not True is False is True is The lasted from the year to the year",
        "What color is a box?\nA. red\nB. blue\nC. green\nD. black\nAnswer: A Answer: B Answer: C Answer: D sum of",
        "difference between",
    ]
)
_GROUPS = {
    "digits": r"[0-9]",
    "triples": r"[0-9]{1,3}",
}


def _byte_level(digits: str) -> tokenizers.Tokenizer:
    """Byte-level BPE; digits alone, in threes (after words), or in pairs as in GPT-2."""
    backend = tokenizers.Tokenizer(models.BPE())
    split = (
        pre_tokenizers.ByteLevel(add_prefix_space=False)
        if digits == "pairs"
        else pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(_GROUPS[digits]), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    )
    backend.pre_tokenizer, backend.decoder = split, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=6000, special_tokens=[END_OF_TEXT], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator([_TEXT] * 20, trainer)
    content = json.loads(backend.to_str())
    merges, vocab = content["model"]["merges"], content["model"]["vocab"]
    pairs = list(itertools.product("0123456789", repeat=2))
    more = []
    if digits == "pairs":
        more = [["Ġ", d] for d in "123456789"] + [[f"Ġ{a}", b] for a, b in pairs if a != "0"]
        more += [["Ġ18", "65"]]  # some years are one token, as in GPT-2
    if digits in ("pairs", "triples"):
        more += [[a, b] for a, b in pairs]
        more.sort(key=lambda merge: len(merge[1]))
    if digits == "triples":
        more += [[f"{a}{b}", c] for a, b in pairs for c in "0123456789"]
        content["model"]["ignore_merges"] = True  # as in Llama 3: a group that is in the vocabulary is one token
    for merge in more:
        vocab.setdefault("".join(merge), len(vocab))
    content["model"]["merges"] = [*merges, *more]
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def _word_piece() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    years = " ".join(f"{c}{y:02d}" for c in range(11, 21) for y in range(100)) + " " + " ".join(map(str, range(100)))
    trainer = trainers.WordPieceTrainer(vocab_size=1500, special_tokens=["[UNK]", END_OF_TEXT])
    backend.train_from_iterator([f"{_TEXT} {years} . : ? A B C D"] * 5, trainer)
    return backend


def _sentence_piece() -> tokenizers.Tokenizer:
    """Words with the mark of a space before them, single characters, and single digits, as in Llama 2 and T5."""
    words = sorted({f"▁{word}" for word in _TEXT.replace("\n", " ").split()} | {"▁A", "▁B", "▁C", "▁D"})
    characters = sorted({*_TEXT, *"0123456789▁"} - {" "})
    pieces = [("<unk>", 0.0), (END_OF_TEXT, 0.0), *((word, -5.0) for word in words)]
    pieces += [(each, -10.0) for each in characters]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    backend.decoder = decoders.Metaspace()
    return backend


def _words() -> tokenizers.Tokenizer:
    """Whole words and whole numbers."""
    backend = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    trainer = trainers.WordLevelTrainer(vocab_size=10_000, special_tokens=["[UNK]", END_OF_TEXT])
    backend.train_from_iterator([_TEXT, " ".join(map(str, range(2100)))], trainer)
    return backend


_KINDS = {
    "pairs of digits": lambda: _byte_level("pairs"),
    "single digits": lambda: _byte_level("digits"),
    "groups of three digits": lambda: _byte_level("triples"),
    "word pieces": _word_piece,
    "sentence pieces": _sentence_piece,
    "whole words": _words,
}


@pytest.fixture(scope="module", params=list(_KINDS))
def tokenizer(request):
    return Tokenizer(_KINDS[request.param](), None, END_OF_TEXT)


def _ids(tokenizer: Tokenizer, value: str | int) -> list[int]:
    return [value] if isinstance(value, int) else tokenizer.encode(value)


@pytest.mark.parametrize("name", ["ioi", "greater-than", "pronouns", "boolean"])
def test_answers_are_what_the_tokenizer_writes_after_the_prompt(tokenizer, name, tmp_path):
    rows = generate(name, tokenizer, 12, seed=1)
    for row in rows:
        assert len(tokenizer.encode(row["clean"])) == len(tokenizer.encode(row["corrupted"]))
        for key in ("answer", "distractor"):
            ids = _ids(tokenizer, row[key])
            assert len(ids) == 1
            text = tokenizer.backend.decode(ids).replace("#", "")
            # after the prompt the tokenizer goes on with this very token, whether or not the prompt ends in a space
            before = tokenizer.encode(row["clean"])
            follows = [tokenizer.encode(row["clean"] + space + text.strip()) for space in ("", " ")]
            assert any(each[: len(before) + 1] == [*before, *ids] for each in follows), (row["clean"][-30:], text)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples, dropped = read_examples(path, tokenizer, vocab_size=tokenizer.vocab_size)
    assert len(examples) == 12 and dropped == 0 and examples.has_answers


def test_all_later_years_are_right_and_all_earlier_ones_wrong(tokenizer):
    for row in generate("greater-than", tokenizer, 40, seed=3):
        shown = row["year"]
        texts = {
            key: [int(tokenizer.backend.decode(_ids(tokenizer, each)).replace("#", "").strip()) for each in row[key]]
            for key in ("answers", "distractors")
        }
        digits = {len(str(max(each))) for each in texts.values()}
        assert len(digits) <= 2 and texts["answers"] and texts["distractors"]
        size = len(str(max(texts["answers"])))
        compared = {1: shown // 10 % 10, 2: shown % 100, 3: shown // 10, 4: shown}[size]
        assert min(texts["answers"]) > compared >= max(texts["distractors"])
        assert set(map(str, row["answers"])) <= set(map(str, row["answer_set"]))


@pytest.mark.parametrize("name", list(TASKS))
def test_splits_share_no_prompt_whatever_the_seeds(name):
    tokenizer = Tokenizer(_byte_level("pairs"), None, END_OF_TEXT)
    prompts: dict[str, set[str]] = {}
    for split in ("train", "validation", "test"):
        rows = [row for seed in (0, 1) for row in generate(name, tokenizer, 60, seed=seed, split=split, shots=2)]
        prompts[split] = {str(row[key]) for row in rows for key in ("clean", "corrupted")}
        if name == "boolean":  # solved expressions tell as much as those that are asked for
            prompts[split] |= {
                line.split(" is")[0] for row in rows for key in ("clean", "corrupted") for line in row[key].split("\n")
            }
    for a, b in itertools.combinations(prompts, 2):
        assert not prompts[a] & prompts[b]


def test_a_split_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="no split 'testing'. Did you mean 'test'"):
        generate("induction", Tokenizer.train(["a"], 300), 3, split="testing")


def test_a_tokenizer_that_cannot_write_years_is_told_what_it_lacks():
    backend = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, END_OF_TEXT: 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(UserError, match="1743 ends in"):
        generate("greater-than", Tokenizer(backend, None, END_OF_TEXT), 3)
