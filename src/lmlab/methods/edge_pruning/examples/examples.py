"""Pairs of a clean and a corrupted input of equal length, with the places where the model answers.

Shapes: N examples, T tokens (padded on the right), P positions.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lmlab.data.tokenizer import Tokenizer
from lmlab.errors import UserError
from lmlab.files import read_jsonl, sha256_json
from lmlab.methods.edge_pruning.examples.foreign import foreign_rows, is_foreign
from lmlab.methods.edge_pruning.examples.span_names import names_of_tokens, numbered
from lmlab.methods.edge_pruning.examples.tasks import SPLITS
from lmlab.words import counted

NONE = -1
"""In place of the token of an answer that is not given."""
_PREDICT = re.compile(r"<predict>(.*?)</predict>", re.DOTALL)
_MOST_LINES, _MOST_TOKENS = 1_000_000, 8192  # of files from outside: all examples are in memory, padded to one length


@dataclass(frozen=True)
class Examples:
    """A task.

    Attributes:
        clean, corrupted: tokens, [N, T].
        positions, weights: where logits are compared, [N, P], and 0 for places that only pad.
        answers, distractors: tokens at the last position, [N]; -1 where there is none.
        answer_ids: the tokens among which the model chooses; None for all.
        distance: what a circuit's output is compared by: `kl` of the distributions, or `mse` of the outputs themselves.
        lengths: tokens of each example without padding, [N]; None where all have T.
        signs: where several answers are right, for each of `answer_ids` 1 if it is right, -1 if it is wrong and 0 if it
            is neither, [N, A].
        spans, span_names: the number of the span of each token, [N, T], and what spans are called, if any are named.
    """

    clean: Tensor
    corrupted: Tensor
    positions: Tensor
    weights: Tensor
    answers: Tensor
    distractors: Tensor
    answer_ids: tuple[int, ...] | None = None
    distance: Literal["kl", "mse"] = "kl"
    lengths: Tensor | None = None
    signs: Tensor | None = None
    spans: Tensor | None = None
    span_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.clean)

    def take(self, index: Tensor | slice) -> Examples:
        """Some of them."""
        names = ("clean", "corrupted", "positions", "weights", "answers", "distractors")
        parts = {name: getattr(self, name)[index] for name in names}
        for name in ("lengths", "signs", "spans"):
            each = getattr(self, name)
            parts[name] = None if each is None else each[index]
        return replace(self, **parts)

    def corrupted_by(self, corrupted: Tensor) -> Examples:
        """The same prompts beside other corrupted inputs, [N, T]."""
        return replace(self, corrupted=corrupted)

    @property
    def has_answers(self) -> bool:
        """Whether every example has an answer and a distractor, as a logit difference needs."""
        return bool((self.answers != NONE).all() and (self.distractors != NONE).all())

    @property
    def real(self) -> Tensor:
        """True for tokens that do not pad, [N, T]."""
        lengths = torch.full((len(self),), self.clean.shape[1]) if self.lengths is None else self.lengths
        return torch.arange(self.clean.shape[1]) < lengths[:, None]

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """The clean prompts, without padding."""
        return self._without_padding(self.clean)

    @property
    def corrupted_prompts(self) -> list[tuple[int, ...]]:
        """The corrupted prompts, without padding."""
        return self._without_padding(self.corrupted)

    def _without_padding(self, tokens_NT: Tensor) -> list[tuple[int, ...]]:
        lengths = self.real.sum(1).tolist()
        return [tuple(row[:length]) for row, length in zip(tokens_NT.tolist(), lengths, strict=True)]

    @property
    def prompt_hashes(self) -> list[str]:
        """A short hash of each clean prompt, by which it is known again."""
        return [sha256_json(prompt)[:8] for prompt in self.prompts]

    @property
    def fingerprint(self) -> str:
        """A hash of everything."""
        parts = (self.clean, self.corrupted, self.positions, self.weights, self.answers, self.distractors)
        more: list[object] = [] if self.signs is None else [self.signs.tolist()]
        more += [] if self.spans is None else [self.span_names, self.spans.tolist()]
        return sha256_json([*(part.tolist() for part in parts), self.answer_ids, self.distance, *more])[:16]


def make_examples(
    clean: Sequence[Sequence[int]],
    corrupted: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    answers: Sequence[int] = (),
    distractors: Sequence[int] = (),
    answer_ids: Sequence[int] | None = None,
    signs: Sequence[Sequence[int]] | None = None,
    spans: Sequence[Sequence[int]] | None = None,
    span_names: Sequence[str] = (),
) -> Examples:
    """Put lists of tokens together, padded on the right."""
    count, length, places = len(clean), max(map(len, clean)), max(map(len, positions))
    none = torch.full((count,), NONE)
    return Examples(
        clean=torch.tensor([[*row, *[0] * (length - len(row))] for row in clean]),
        corrupted=torch.tensor([[*row, *[0] * (length - len(row))] for row in corrupted]),
        positions=torch.tensor([[*row, *[row[-1]] * (places - len(row))] for row in positions]),
        weights=torch.tensor([[1.0] * len(row) + [0.0] * (places - len(row)) for row in positions]),
        answers=torch.tensor(answers) if len(answers) else none,
        distractors=torch.tensor(distractors) if len(distractors) else none,
        answer_ids=None if answer_ids is None else tuple(answer_ids),
        lengths=torch.tensor([len(row) for row in clean]),
        signs=None if signs is None else torch.tensor(signs),
        spans=None if spans is None else torch.tensor([[*row, *[0] * (length - len(row))] for row in spans]),
        span_names=tuple(span_names),
    )


@dataclass(frozen=True)
class _Row:
    clean: list[int]
    corrupted: list[int]
    positions: list[int]
    answer: int
    distractor: int
    right: list[int]
    wrong: list[int]
    spans: list[str]


def read_examples(
    path: str | Path,
    tokenizer: Tokenizer | None = None,
    split: str | None = None,
    drop_mismatched: bool = False,
    first_token: bool = False,
    vocab_size: int | None = None,
    max_seq_len: int | None = None,
) -> tuple[Examples, int]:
    """Read JSON lines, the CSV of EAP-IG, or the Arrow folders of the reference implementation: `clean` and `corrupted`
    (texts or lists of tokens), optionally `answer`, `distractor`, `answers`, `distractors`, `answer_set`, `positions`,
    `split`, `spans`.

    Texts may hold `<predict>...</predict>` around what is to be predicted, whose tokens are then the positions.

    Arguments:
        tokenizer: for texts.
        split: only the lines of this split; all lines where none names a split.
        drop_mismatched: leave out pairs of unequal length in place of an error.
        first_token: of answers with several tokens take the first.
        vocab_size, max_seq_len: of the model; tokens beyond the one and prompts longer than the other are refused.

    Returns:
        the examples, and how many were left out.

    Raises:
        UserError: a line is wrong; it is named.
    """
    path = Path(path)
    rows: list[_Row] = []
    dropped, answer_set = 0, None
    answered: dict[bool, str] = {}
    for number, line in _lines(path, split):
        where = f"'{path}', line {number}"
        row = _row(line, where, tokenizer, first_token)
        _check_range(row, where, vocab_size, max_seq_len)
        if len(row.clean) != len(row.corrupted):
            if drop_mismatched:
                dropped += 1
                continue
            raise UserError(
                f"{where}: clean has {counted(len(row.clean), 'tokens')} and corrupted {len(row.corrupted)}:"
                f" {_show(row.clean, tokenizer)} and {_show(row.corrupted, tokenizer)}.",
                "Make them equally long, or leave such pairs out with --drop-mismatched.",
            )
        found = _answer_set(line, where, tokenizer, first_token, vocab_size)
        if rows and answer_set != found:
            raise UserError(
                f"{where}: its answer_set differs from that of the lines before.",
                "Put tasks with different answers into different files.",
            )
        answer_set = found
        _check_answers(row, found, where)
        answered.setdefault(row.answer != NONE, where)
        if len(answered) == 2:
            raise UserError(
                f"{answered[False]} has no answer, but {answered[True]} has one: by a logit difference only examples"
                " with answers can be measured.",
                "Give every line an answer and a distractor, or none, or put them into files of their own.",
            )
        if rows and bool(rows[0].right) != bool(row.right):
            raise UserError(
                f"{where}: some lines list several answers, this one or those before do not.",
                "Give every line 'answers' and 'distractors', or none.",
            )
        if rows and bool(rows[0].spans) != bool(row.spans):
            raise UserError(
                f"{where}: some lines name spans, this one or those before do not.",
                "Name spans in every line, or none.",
            )
        rows.append(row)
    if not rows:
        raise UserError(
            f"'{path}' holds no"
            f" examples{f' of the split {split}' if split else ''}{f' ({dropped} were left out)' if dropped else ''}."
        )
    span_names, spans = numbered([row.spans for row in rows])
    examples = make_examples(
        [row.clean for row in rows],
        [row.corrupted for row in rows],
        [row.positions for row in rows],
        [row.answer for row in rows],
        [row.distractor for row in rows],
        answer_set,
        None
        if not rows[0].right
        else [[(each in row.right) - (each in row.wrong) for each in answer_set or ()] for row in rows],
        spans if span_names else None,
        span_names,
    )
    return examples, dropped


def _answer_set(
    line: dict[str, Any], where: str, tokenizer: Tokenizer | None, first_token: bool, vocab_size: int | None
) -> tuple[int, ...] | None:
    value = line.get("answer_set")
    if value is None:
        return None
    found = tuple(_token_list(value, tokenizer, f"{where}, answer_set", first_token))
    if len(found) < 2 or len(set(found)) < len(found):
        raise UserError(f"{where}, answer_set: it must hold two different tokens at least, and none twice.")
    _check_token(found, f"{where}, answer_set", vocab_size)
    return found


def _token_list(value: Any, tokenizer: Tokenizer | None, where: str, first_token: bool) -> list[int]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: expected a list of answers.")
    return [_token(each, tokenizer, where, first_token) for each in value]


def _check_token(ids: Sequence[int], where: str, vocab_size: int | None) -> None:
    beyond = [each for each in ids if vocab_size is not None and each >= vocab_size]
    if beyond:
        raise UserError(
            f"{where}: the token {beyond[0]} lies beyond the model's vocabulary of {vocab_size:,}.",
            "Make the examples with the tokenizer of this model.",
        )


def _check_range(row: _Row, where: str, vocab_size: int | None, max_seq_len: int | None) -> None:
    for name in ("clean", "corrupted"):
        ids = getattr(row, name)
        _check_token(ids, f"{where}, {name}", vocab_size)
        if max_seq_len is not None and len(ids) > max_seq_len:
            raise UserError(
                f"{where}, {name}: it has {len(ids):,} tokens; the model's table of positions has {max_seq_len:,}.",
                "Shorten the prompt.",
            )
    named = [each for each in (row.answer, row.distractor, *row.right, *row.wrong) if each != NONE]
    _check_token(named, f"{where}, answer", vocab_size)


def _check_answers(row: _Row, answer_set: tuple[int, ...] | None, where: str) -> None:
    """See that what is asked for can be answered."""
    if (row.answer == NONE) != (row.distractor == NONE):
        missing = "an answer" if row.answer == NONE else "a distractor"
        raise UserError(
            f"{where} has no {missing.split()[1]}: a logit difference needs an answer and a distractor.",
            f"Give it {missing}, or leave both out to compare distributions (KL).",
        )
    if row.answer != NONE and row.answer == row.distractor:
        raise UserError(f"{where}: answer and distractor are the same token, so their logits never differ.")
    if bool(row.right) != bool(row.wrong):
        raise UserError(f"{where}: give both 'answers' and 'distractors', or neither.")
    if row.right and (row.answer == NONE or answer_set is None):
        raise UserError(f"{where}: 'answers' need an answer, a distractor and an answer_set beside them.")
    if set(row.right) & set(row.wrong):
        raise UserError(f"{where}: a token stands among 'answers' and 'distractors'.")
    if row.right and (row.answer not in row.right or row.distractor not in row.wrong):
        raise UserError(
            f"{where}: the answer must be one of 'answers', and the distractor one of 'distractors'.",
            "They are the two between which the logit difference is taken.",
        )
    named = [each for each in (row.answer, row.distractor, *row.right, *row.wrong) if each != NONE]
    if answer_set is not None and not set(named) <= set(answer_set):
        outside = next(each for each in named if each not in answer_set)
        raise UserError(
            f"{where}: the token {outside} of its answers is not in its answer_set, so it could never be chosen."
        )


def _lines(path: Path, split: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = foreign_rows(path) if is_foreign(path) else list(read_jsonl(path))
    if len(lines) > _MOST_LINES:
        raise UserError(f"'{path}' has {counted(len(lines), 'lines')}; the most are {_MOST_LINES:,}.")
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict):
            raise UserError(f"'{path}', line {number}: expected an object.")
        if not isinstance(line.get("split", ""), str | None):
            raise UserError(f"'{path}', line {number}: the split must be a name, not {line['split']!r}.")
    known = sorted({line["split"] for line in lines if line.get("split") is not None})
    # where no line names one, all lines serve every split
    if split is not None and split not in (known or SPLITS):
        has = f"it has {', '.join(known)}" if known else "its lines name none"
        raise UserError(f"'{path}' has no split '{split}': {has}.", "Leave --split out, or name one that is there.")
    named = split is not None and bool(known)
    for number, line in enumerate(lines, 1):
        if not named or line.get("split") == split:
            yield number, line


def splits_of(path: str | Path) -> list[str]:
    """The splits that the lines of a file name."""
    return sorted({str(line["split"]) for _, line in _lines(Path(path), None) if line.get("split") is not None})


_FIELDS = (
    "clean", "corrupted", "answer", "distractor", "answers", "distractors", "answer_set", "positions", "spans", "split",
)  # fmt: skip
_SLIP = 0.8  # how much alike a name and a known one are that differ by a slip


def _row(line: dict[str, Any], where: str, tokenizer: Tokenizer | None, first_token: bool) -> _Row:
    for key in ("clean", "corrupted"):
        if not line.get(key):
            raise UserError(f"{where}: the field '{key}' is missing or empty.")
    for key in line.keys() - set(_FIELDS):
        # lines may say more, but a slip of the pen would have circuits measured in another way without a word
        near = difflib.get_close_matches(key, _FIELDS, n=1, cutoff=_SLIP)
        if near and near[0] not in line:
            raise UserError(f"{where}: the field '{key}' is not known. Did you mean '{near[0]}'?")
    clean, positions, offsets = _tokens(line["clean"], tokenizer, f"{where}, clean")
    corrupted, _, _ = _tokens(line["corrupted"], tokenizer, f"{where}, corrupted")
    given = line.get("positions")
    if given is not None and (not isinstance(given, list) or not given or not all(map(_is_number, given))):
        raise UserError(f"{where}: positions must be a list of whole numbers, not {given!r}.")
    positions = given or positions or [len(clean) - 1]
    positions = [each + len(clean) if each < 0 else each for each in positions]
    if not all(0 <= each < len(clean) for each in positions):
        raise UserError(f"{where}: positions {positions} lie outside the {counted(len(clean), 'tokens')}.")
    if len(set(positions)) < len(positions):
        raise UserError(f"{where}: positions {positions} name a place twice.")
    answer, distractor = (
        NONE if line.get(key) is None else _token(line[key], tokenizer, f"{where}, {key}", first_token)
        for key in ("answer", "distractor")
    )
    right, wrong = (
        [] if line.get(key) is None else _token_list(line[key], tokenizer, f"{where}, {key}", first_token)
        for key in ("answers", "distractors")
    )
    unit = "characters of the text" if isinstance(line["clean"], str) else "tokens"
    spans = [] if line.get("spans") is None else names_of_tokens(line["spans"], where, offsets, unit)
    return _Row(clean, corrupted, positions, answer, distractor, right, wrong, spans)


def _is_number(value: Any) -> bool:
    """A whole number; `true` and `false` are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _tokens(value: Any, tokenizer: Tokenizer | None, where: str) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Tokens, the positions before those of what is to be predicted, and where each token begins and ends: in
    characters of a text, or in tokens.
    """
    if isinstance(value, list):
        if not all(_is_number(each) and each >= 0 for each in value):
            raise UserError(f"{where}: a list must hold token ids.")
        ids, positions, places = value, [], [(n, n + 1) for n in range(len(value))]
    elif isinstance(value, str):
        if tokenizer is None:
            raise UserError(
                f"{where} is a text, but the model has no tokenizer.",
                "Give lists of token ids, or a model directory with tokenizer.json.",
            )
        spans, plain, end = [], "", 0
        for match in _PREDICT.finditer(value):
            plain += value[end : match.start()]
            spans.append((len(plain), len(plain) + len(match[1])))
            plain += match[1]
            end = match.end()
        plain += value[end:]
        if re.search("</?predict>", plain):
            raise UserError(f"{where}: a mark <predict> is not closed, or not opened.", "Write <predict>...</predict>.")
        found, offsets = tokenizer.encode_with_offsets(plain)
        ids = [*tokenizer.begin_ids, *found]
        places = [*((0, 0) for _ in tokenizer.begin_ids), *offsets]
        shift = len(tokenizer.begin_ids) - 1
        positions = [
            n + shift
            for n, (start, stop) in enumerate(offsets)
            if any(start < b and stop > a for a, b in spans) and n + shift >= 0
        ]
        if spans and not positions:
            raise UserError(
                f"{where}: nothing can be predicted at <predict>: it holds no token, or the first of the prompt, before"
                " which there is none.",
                "Mark a part that follows other tokens.",
            )
    else:
        raise UserError(f"{where}: expected a text or a list of token ids.")
    if len(ids) > _MOST_TOKENS:
        raise UserError(f"{where} has {counted(len(ids), 'tokens')}; the most are {_MOST_TOKENS:,}.")
    return ids, positions, places


def _token(value: Any, tokenizer: Tokenizer | None, where: str, first_token: bool) -> int:
    if _is_number(value):
        if value < 0:
            raise UserError(f"{where}: {value} is no token; ids begin at 0.")
        return int(value)
    if not isinstance(value, str) or tokenizer is None:
        raise UserError(
            f"{where}: expected {'a text or a token id' if tokenizer else 'a token id, as the model has no tokenizer'},"
            f" not {value!r}."
        )
    ids = tokenizer.encode(value)
    if len(ids) != 1 and not (first_token and ids):
        raise UserError(
            f"{where}: '{value}' is not a single token but {_show(ids, tokenizer)}; a logit difference needs one.",
            "Leave answers out to compare distributions (KL), or take the first token with --first-token.",
        )
    return ids[0]


def _show(ids: Sequence[int], tokenizer: Tokenizer | None) -> str:
    return (
        str(list(ids))
        if tokenizer is None
        else str([tokenizer.backend.decode([each], skip_special_tokens=False) for each in ids])
    )
