"""Tokens that may come next, read off the text itself: where its last tokens stood before, what followed them there.

Prompt lookup decoding (Saxena 2023) is speculative decoding (Leviathan et al. 2023) whose draft costs no model. Answers
that repeat their prompt, such as edits of code, summaries, extracts and answers with citations, are drafted well; where
nothing repeats, drafts become rare by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

_SIZES = (4, 3, 2)  # tokens that must have stood before; one alone says too little
_LONGEST_PAUSE = 32  # tokens without a draft after drafts of which nothing held


class Lookup:
    """Drafts for one text as it grows.

    Arguments:
        prompt: its first tokens.
        most: tokens of a draft at most.
    """

    def __init__(self, prompt: Sequence[int], most: int) -> None:
        self._most, self._prompt, self._ids = most, len(prompt), list(prompt)
        self._after: dict[tuple[int, ...], int] = {}  # some tokens, and the place that came after them the last time
        self._indexed = 0  # places that are in it
        self._pause = self._waits = 0

    def draft(self, ids: Sequence[int], room: int) -> list[int]:
        """What may follow, no more than `room` tokens; often nothing.

        Arguments:
            ids: what has come after the prompt.
        """
        self._ids.extend(ids[len(self._ids) - self._prompt :])
        if self._waits:
            self._waits -= 1
            return []
        for place in range(self._indexed + 1, len(self._ids)):
            for size in _SIZES:
                if size <= place:
                    self._after[tuple(self._ids[place - size : place])] = place
        self._indexed = max(self._indexed, len(self._ids) - 1)
        for size in _SIZES:
            place = self._after.get(tuple(self._ids[-size:]), 0)
            if place:
                found = self._ids[place : place + min(self._most, room)]
                # a text that goes in circles is likely to go round once more
                while 0 < len(found) < min(self._most, room):
                    found.append(found[len(found) - (len(self._ids) - place)])
                return found
        return []

    def judge(self, accepted: int) -> None:
        """Learn how many tokens of the draft came true: where none did, the next one waits, and ever longer."""
        self._pause = 0 if accepted else min(max(1, 2 * self._pause), _LONGEST_PAUSE)
        self._waits = self._pause
