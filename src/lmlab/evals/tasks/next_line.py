"""A ranked-classification task from any text: which of four lines really follows this context?

Distractors come from other files of the same domain, have the same indentation and nearly the same length as the real
line, so that neither gives the answer away.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from lmlab.data import Document
from lmlab.evals.tasks.questions import Question

_MIN_CHARACTERS = 12  # shorter lines, such as `else:`, are alike everywhere and cannot be told apart
_MAX_CHARACTERS = 120  # longer ones have few others of their length to be asked beside
_LENGTH_RATIO = 1.25  # of options of unlike length, length alone would tell the right one


def build_next_line_items(
    documents: Sequence[Document],
    items_per_domain: int,
    seed: int,
    num_options: int = 4,
    context_lines: int = 12,
    context_bytes: int = 400,
) -> list[Question]:
    """Draw up to `items_per_domain` questions for each domain, the same for the same documents and seed.

    Arguments:
        context_lines, context_bytes: the most that is shown of the text before the line, in whole lines.
    """
    items: list[Question] = []
    by_domain: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        by_domain[document.domain].append(document)
    for domain, members in sorted(by_domain.items()):
        generator = random.Random(f"{seed}:{domain}")
        lines = {document.id: document.text.splitlines(keepends=True) for document in members}
        candidates = [
            (document.id, number)
            for document in members
            for number in range(2, len(lines[document.id]))
            if _usable(lines[document.id][number])
        ]
        pool: dict[int, list[tuple[str, str]]] = defaultdict(list)
        for id, number in candidates:
            pool[_indentation(lines[id][number])].append((id, lines[id][number]))
        generator.shuffle(candidates)
        count = 0
        for id, number in candidates:
            if count == items_per_domain:
                break
            gold = lines[id][number]
            distractors = _distractors(gold, id, pool[_indentation(gold)], num_options - 1, generator)
            if distractors is None:
                continue
            options = [*distractors, gold]
            generator.shuffle(options)
            context = _context(lines[id], number, context_lines, context_bytes)
            items.append(
                Question(
                    id=f"{id}:{number + 1}", context=context, options=options, gold=options.index(gold), domain=domain
                )
            )
            count += 1
    return items


def _usable(line: str) -> bool:
    return (
        line.endswith("\n")
        and _MIN_CHARACTERS <= len(line.strip()) <= _MAX_CHARACTERS
        and any(character.isalpha() for character in line)
    )


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def _distractors(
    gold: str, id: str, pool: Sequence[tuple[str, str]], count: int, generator: random.Random
) -> list[str] | None:
    chosen: list[str] = []
    for other_id, line in generator.sample(pool, min(len(pool), 200)):  # looked at; of these enough are about as long
        similar = len(gold) / _LENGTH_RATIO <= len(line) <= len(gold) * _LENGTH_RATIO
        if other_id != id and similar and line != gold and line not in chosen:
            chosen.append(line)
            if len(chosen) == count:
                return chosen
    return None


def _context(lines: Sequence[str], number: int, most_lines: int, most_bytes: int) -> str:
    context = ""
    for line in reversed(lines[max(0, number - most_lines) : number]):
        if context and len((line + context).encode()) > most_bytes:
            break
        context = line + context
    return context[-most_bytes:]
