"""A ranked-classification task from any text: which of four words really comes next?

The wrong words occur elsewhere in the same domain and are drawn as often as they occur, as the right ones are, so that
the frequency of words alone does not give the answer. Small models can learn something of it: their accuracy rises long
before that on whole lines does.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence

from lmlab.data import Document
from lmlab.evals.tasks.questions import Question

_WORD = re.compile(r"(?<=\S) ([A-Za-z_]{3,20})(?![A-Za-z_0-9])")
_MIN_CONTEXT = 40  # characters: after fewer, next to nothing tells which word follows


def build_next_word_items(
    documents: Sequence[Document], items_per_domain: int, seed: int, num_options: int = 4, context_bytes: int = 200
) -> list[Question]:
    """Draw up to `items_per_domain` questions for each domain, the same for the same documents and seed.

    Arguments:
        context_bytes: the most that is shown of the text before the word.
    """
    items: list[Question] = []
    by_domain: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        by_domain[document.domain].append(document)
    for domain, members in sorted(by_domain.items()):
        generator = random.Random(f"{seed}:words:{domain}")
        places = [
            (document, found.start(), found.group(1)) for document in members for found in _WORD.finditer(document.text)
        ]
        words = [word for _, _, word in places]
        if len(set(words)) < num_options:
            continue
        generator.shuffle(places)
        asked = [place for place in places if place[1] >= _MIN_CONTEXT][:items_per_domain]
        for document, start, gold in asked:
            chosen = [gold]
            while len(chosen) < num_options:
                word = generator.choice(words)
                if word not in chosen:
                    chosen.append(word)
            generator.shuffle(chosen)
            context = document.text[:start].encode()[-context_bytes:].decode("utf-8", "ignore")
            options = [f" {word}" for word in chosen]
            items.append(
                Question(
                    id=f"{document.id}:{start}",
                    context=context,
                    options=options,
                    gold=chosen.index(gold),
                    domain=domain,
                )
            )
    return items
