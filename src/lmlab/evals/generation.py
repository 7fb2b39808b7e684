"""Tasks in which a model writes: prompts, references, and how what it wrote is compared with them.

A file of prompts is JSON lines; each row has `id`, `prompt`, `references` (a list of texts), and optionally `domain`,
`stop` and `max_new_tokens`.
"""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Literal

from pydantic import Field

from lmlab.config import Config, validate
from lmlab.data import Tokenizer
from lmlab.errors import UserError, missing_extra
from lmlab.evals.config import TooLong
from lmlab.evals.measurement import Measurement, mean
from lmlab.evals.rows import Row
from lmlab.files import read_jsonl
from lmlab.models import GenerationConfig, Transformer, generate

TextMetric = Literal["exact_match", "f1", "rouge1", "rouge2", "rougeL"]
_ALWAYS: tuple[TextMetric, ...] = ("exact_match", "f1")
_BATCH = 16  # prompts of like length: more take memory for keys and values, fewer leave the machine idle
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"[-+]?\$?\d[\d,]*(\.\d+)?%?")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Prompt(Config):
    """One prompt with the answers that count as right."""

    id: str
    prompt: str = Field(min_length=1)
    references: list[str] = Field(min_length=1)
    domain: str = "text"
    stop: tuple[str, ...] = ()
    max_new_tokens: int | None = Field(default=None, gt=0)


class Writing(Config):
    """How long a model writes, and what of it is the answer; the fields are those of a task."""

    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    extract: str | None = None
    take: Literal["first", "last"] = "first"


def read_prompts(path: Path) -> list[Prompt]:
    """Read a file of prompts; a row that is not one is a `UserError` with its line."""
    prompts = [validate(Prompt, row, f"'{path}', line {number}") for number, row in enumerate(read_jsonl(path), 1)]
    if not prompts:
        raise UserError(f"The task file '{path}' is empty.")
    return prompts


def answer_prompts(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    how: Writing,
    too_long: TooLong = "error",
    end_ids: Sequence[int] = (),
) -> Iterator[Row]:
    """The row of each prompt, as they come: greedy text, the answer in it, and its agreement with the best reference.

    Arguments:
        end_ids: tokens that end a text, by default the tokenizer's end alone.

    Raises:
        UserError: prompt and answer exceed the model's window and `too_long` is `error`.
    """
    waiting: dict[tuple[int, tuple[str, ...]], list[tuple[Prompt, list[int], int]]] = defaultdict(list)
    for prompt in prompts:
        length = prompt.max_new_tokens or how.max_new_tokens
        ids = tokenizer.encode_prompt(prompt.prompt)
        too_many = len(ids) + length - model.config.max_seq_len
        if too_many > 0 and too_long == "skip":
            yield {"id": prompt.id, "domain": prompt.domain, "skipped": True}
            continue
        if too_many > 0 and (too_long == "error" or too_many >= len(ids)):
            raise UserError(
                f"Prompt '{prompt.id}' has {len(ids)} tokens; with {length} new ones that is more than the model's"
                f" {model.config.max_seq_len}.",
                "Set too_long to truncate (cut its beginning) or to skip, or lower max_new_tokens.",
            )
        waiting[length, prompt.stop or how.stop].append((prompt, ids[max(0, too_many) :], max(0, too_many)))
    for (length, stop), found in waiting.items():
        settings = GenerationConfig(
            max_new_tokens=length, temperature=0, stop=stop, eos_ids=tuple(end_ids) or (tokenizer.eos_id,)
        )
        found.sort(key=lambda each: -len(each[1]))
        for start in range(0, len(found), _BATCH):
            batch = found[start : start + _BATCH]
            for (prompt, _, cut), (done,) in zip(
                batch, generate(model, [ids for _, ids, _ in batch], settings, decode=tokenizer.decode), strict=True
            ):
                row = answer_row(prompt, done.text or "", how)
                yield row | {"finish_reason": done.finish_reason} | ({"tokens_cut": cut} if cut else {})


def answer_row(prompt: Prompt, text: str, how: Writing) -> Row:
    """The row of a prompt for what a model wrote."""
    answer = extract_answer(text, how)
    return {"id": prompt.id, "domain": prompt.domain, "text": text, "answer": answer, "references": prompt.references}


def extract_answer(text: str, how: Writing) -> str:
    """What the expression finds in a text (its first group, if it has one), or the text without the spaces around it;
    nothing found is no answer.
    """
    if how.extract is None:
        return text.strip()
    found = [match[1] if match.re.groups else match[0] for match in re.finditer(how.extract, text)]
    return (found[0 if how.take == "first" else -1] or "").strip() if found else ""


def text_figures(rows: Sequence[Row], metric: TextMetric) -> dict[str, Measurement]:
    """Exact match and F1, and ROUGE where that is the metric: of each answer with its best reference; then the mean
    over prompts.
    """
    rows = [row for row in rows if not row.get("skipped")]
    if not rows:
        return {}
    names: list[TextMetric] = [metric, *(name for name in _ALWAYS if name != metric)]
    return {name: mean([best_agreement(row["answer"], row["references"], name) for row in rows]) for name in names}


def best_agreement(answer: str, references: Sequence[str], metric: TextMetric) -> float:
    """The greatest agreement of an answer with one of the references, 0 to 1."""
    compare = {"exact_match": exact_match, "f1": token_f1}.get(metric) or rouge(metric)
    return max(compare(answer, reference) for reference in references)


def normalized(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces (Rajpurkar et al. 2016, the evaluation script of
    SQuAD).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, reference: str) -> float:
    """1 where both are the same after normalization.

    Numbers are compared by value; what normalization leaves nothing of, as text.
    """
    numbers = _number(answer), _number(reference)
    if None not in numbers:
        return float(numbers[0] == numbers[1])
    ours, theirs = normalized(answer), normalized(reference)
    if not ours or not theirs:  # an article or marks alone, such as the letter A
        ours, theirs = answer.strip().lower(), reference.strip().lower()
    return float(ours == theirs != "")


def _number(text: str) -> Decimal | None:
    text = text.strip().removesuffix(".")
    return Decimal(re.sub(r"[$,%]", "", text)) if _NUMBER.fullmatch(text) else None


def token_f1(answer: str, reference: str) -> float:
    """The harmonic mean of precision and recall of the normalized words, repeats counted (Rajpurkar et al. 2016)."""
    ours, theirs = normalized(answer).split(), normalized(reference).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def rouge(
    metric: TextMetric, part: Literal["fmeasure", "recall", "precision"] = "fmeasure"
) -> Callable[[str, str], float]:
    """ROUGE of an answer and a reference, with stemming (Lin 2004)."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise missing_extra("rouge_score", "The metric ROUGE") from None
    scorer = RougeScorer([metric], use_stemmer=True)
    return lambda answer, reference: float(getattr(scorer.score(reference, answer)[metric], part))
