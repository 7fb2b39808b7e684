"""Data by its settings: a task that is drawn, or files (Friedman et al. 2023, section 4 and appendix)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.config import validate
from lmlab.data.documents import Reject
from lmlab.data.labeled import Kind, LabeledSequence, read_labeled
from lmlab.data.rejects import Rejects
from lmlab.errors import UserError
from lmlab.methods.transformer_programs.config import DataConfig
from lmlab.methods.transformer_programs.program.ir import spelled
from lmlab.methods.transformer_programs.tasks.dataset import Dataset, Split, encode
from lmlab.methods.transformer_programs.tasks.rasp import BOS, EOS, PAD, UNK, Example, generate, is_small, split, task
from lmlab.progress import console

_RESERVED = (PAD, BOS, EOS)
_MOST_UNFIT = 0.5  # of the lines: more is another kind of file
_DRAWN = {"vocab_size", "size", "min_length", "max_length", "data_seed"}


def load_data(config: DataConfig, rejects: str | Path | None = None) -> Dataset:
    """The splits that a configuration asks for.

    Arguments:
        rejects: receives the rows of files that cannot be used.

    Raises:
        UserError: there is no such task or file, a token is a reserved mark, or too little can be used.
    """
    rejects = None if rejects is None else Path(rejects)
    return draw(config) if config.task is not None else _from_files(config, rejects)


def about_data(config: DataConfig) -> dict[str, Any] | None:
    """What a program's file says of a task that it was trained on: its name, and under `drawn` what was not the usual;
    None of files.
    """
    if config.task is None:
        return None
    drawn = {name: value for name, value in config.model_dump(exclude_defaults=True).items() if name in _DRAWN}
    return {"task": config.task, **({"drawn": drawn} if drawn else {})}


def data_of(about: Mapping[str, Any], task_name: str | None) -> DataConfig:
    """The data that a program's file says, or another task's as it is usually drawn.

    Raises:
        UserError: it names no task, or sizes that no task has.
    """
    name = task_name or about.get("task")
    if not isinstance(name, str):
        raise UserError("Give --data or --task.")
    drawn = about.get("drawn", {}) if name == about.get("task") else {}
    if not isinstance(drawn, dict) or not set(drawn) <= _DRAWN:
        raise UserError(f"'drawn' of the program's file is {drawn!r:.100}.", f"It may say {', '.join(sorted(_DRAWN))}.")
    config = validate(DataConfig, {"task": name, **drawn}, "the program's task")
    vocab_size, _, longest = task(name).defaults
    vocab_size, longest = config.vocab_size or vocab_size, config.max_length or longest
    if not is_small(config.size, vocab_size, longest):
        raise UserError(
            f"The program's file says that {config.size:,} sequences of up to {longest:,} places are drawn from"
            f" {vocab_size:,} words: too many.",
            "Give --data, or change 'drawn' in program.json.",
        )
    return config


def draw(config: DataConfig) -> Dataset:
    """A RASP task."""
    assert config.task is not None
    chosen = task(config.task)
    vocab_size, shortest, longest = chosen.defaults
    examples = generate(
        chosen.name,
        config.size,
        config.vocab_size or vocab_size,
        config.min_length or shortest,
        config.max_length or longest,
        config.data_seed,
    )
    parts = split(examples, config.data_seed)
    if not all(parts):
        raise UserError(f"{len(examples)} examples are too few for three splits.", "Raise size.")
    # in the reference, <pad> and, but where it is an answer, <unk> are labels that are never given
    never = {PAD} if chosen.unmasked else {PAD, UNK}
    answers = sorted({label for _, labels in parts[0] for label in labels} - never)
    # the reference takes those of the training part; few examples may leave some to the other parts
    words = [PAD, *sorted({token for tokens, _ in examples for token in tokens} - {PAD})]
    return _dataset(words, answers, parts, chosen.autoregressive, pooled=False)


def _from_files(config: DataConfig, rejects: Path | None) -> Dataset:
    assert config.data is not None
    pooled = config.labels == "sequence"
    with Rejects(rejects, _MOST_UNFIT) as unfit:
        train = _read(config, config.data, unfit)
        valid = _read(config, config.valid, unfit) if config.valid else None
        test = _read(config, config.test, unfit) if config.test else []
    unfit.check(len(train) + len(valid or ()) + len(test), "Mend the file, or raise max_length.")
    if unfit.first is not None:
        first = f"{unfit.first.where}: {unfit.first.reason}"
        console.print(f"{unfit.unfit:,} sequences are set aside; the first is {first}.", style="yellow")
    if valid is None:
        order = np.random.RandomState(0).permutation(len(train)).tolist()
        held = max(1, len(train) // 10)  # as the tasks of the paper have it
        train, valid = [train[place] for place in order[held:]], [train[place] for place in order[:held]]
    if not train or not valid:
        raise UserError(f"'{config.data}' has too few sequences that can be used.", "Give more data.")
    counts = Counter(token for tokens, _ in train for token in tokens if token not in _RESERVED)
    common = [word for word, _ in counts.most_common(config.max_words) if word != UNK]
    answers = sorted({label for _, labels in train for label in labels} - {PAD})
    found = _dataset([PAD, UNK, BOS, EOS, *common], answers, (train, valid, test), config.autoregressive, pooled)
    return replace(found, lower=config.lower, replace_numbers=config.replace_numbers)


def _read(config: DataConfig, path: str, unfit: Rejects) -> list[Example]:
    found: list[Example] = []
    for each in read_labeled(path, config.labels, config.token_column, config.label_column):
        problem = each if isinstance(each, Reject) else _problem(config, each)
        if problem is not None:
            unfit.add(problem)
            continue
        assert isinstance(each, LabeledSequence)
        tokens = [BOS, *(spelled(token, config.lower, config.replace_numbers) for token in each.tokens), EOS]
        if config.labels == "sequence":
            found.append((tokens, [_given(each.labels[0]), *[PAD] * (len(tokens) - 1)]))
        else:
            found.append((tokens, [PAD, *map(_given, each.labels), PAD]))
    return found


def _given(label: str | None) -> str:
    """A label; the mark of padding where there is none. The empty text is a label like any other."""
    return PAD if label is None else label


def read_examples(
    path: str, kind: Kind, bos: str | None, eos: str | None, token_column: int = 0, label_column: int = -1
) -> list[Example]:
    """The labeled sequences of a file with the marks of a program. Their tokens stay as they are: a program spells them
    itself.

    Raises:
        UserError: a row cannot be used, for here each one counts; or there is none.
    """
    found: list[Example] = []
    for each in read_labeled(path, kind, token_column, label_column):
        if isinstance(each, Reject):
            raise UserError(f"{each.where}: {each.reason}.")
        tokens = [*([bos] if bos else []), *each.tokens, *([eos] if eos else [])]
        if kind == "sequence":
            found.append((tokens, [_given(each.labels[0]), *[PAD] * (len(tokens) - 1)]))
        else:
            answers = map(_given, each.labels)
            found.append((tokens, [*([PAD] if bos else []), *answers, *([PAD] if eos else [])]))
    if not found:
        raise UserError(f"'{path}' holds no labeled sequences.")
    return found


def _problem(config: DataConfig, each: LabeledSequence) -> Reject | None:
    """Why a sequence is not used.

    Raises:
        UserError: a token or label is one of the marks: no data may hold them, so that this is a fault of the file.
    """
    reserved = next((word for word in (*each.tokens, *each.labels) if word in _RESERVED), None)
    if reserved is not None:
        raise UserError(f"{each.where}: '{reserved}' is a reserved mark.", "Spell this token or label otherwise.")
    if config.min_length is not None and len(each.tokens) < config.min_length:
        return Reject(each.where, f"{len(each.tokens)} tokens are fewer than min_length {config.min_length}")
    if config.max_length is not None and len(each.tokens) + 2 > config.max_length:
        return Reject(each.where, f"{len(each.tokens)} tokens and two marks exceed max_length {config.max_length}")
    return None


def _dataset(
    words: Sequence[str], answers: Sequence[str], parts: Sequence[list[Example]], autoregressive: bool, pooled: bool
) -> Dataset:
    context = max(len(tokens) for part in parts for tokens, _ in part)
    splits: list[Split] = [encode(part, words, answers, context, pooled) for part in parts]
    for name, part in zip(("validation", "test"), splits[1:], strict=True):
        for label, count in part.unseen.items():
            console.print(
                f"The label {label!r} of the {name} data never occurs in training; its {count} places count as wrong.",
                style="yellow",
            )
    train, valid, test = splits
    return Dataset(
        tuple(words), tuple(answers), train, valid, test if len(test) else None, context, autoregressive, pooled
    )
