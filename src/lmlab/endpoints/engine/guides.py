"""Answers that are JSON of a schema by construction: at each place only tokens may come that keep to it (Willard and
Louf 2023). The grammar is followed by the library `llguidance`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from lmlab.data import Tokenizer
from lmlab.errors import UserError, missing_extra
from lmlab.files import json_value
from lmlab.models.generation.config import Guide
from lmlab.words import counted

_SPACES = r"[ \n]{0,4}"  # between the parts of a value; models that may write blanks without end do
_MOST_SCHEMA = 2**18  # characters: it comes from outside, and is compiled before anything is answered
_MOST_GRAMMAR = 100_000  # symbols; larger ones take seconds
MakeGuide = Callable[[], Guide]


class Guides:
    """Makes guides for one tokenizer.

    Arguments:
        vocab_size: of the network, which may have more ids than the tokenizer.
        eos_ids: tokens that end an answer.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Sequence[int]) -> None:
        self._tokenizer, self._vocab_size, self._eos_ids = tokenizer, vocab_size, list(eos_ids)
        self._words: Any = None
        self._compiled = lru_cache(64)(self._compile)

    def json(self, schema: dict[str, Any] | None = None) -> MakeGuide:
        """For an answer that is JSON of a schema; without one, any object.

        Raises:
            UserError: the schema is none, or `llguidance` is not installed.
        """
        return self._compiled("json", _spelled({"type": "object"} if schema is None else schema))

    def calls(self, schema: dict[str, Any], most: int, or_text: bool) -> MakeGuide:
        """For an answer that is JSON of a schema, up to so many times and each in a line of its own.

        Arguments:
            or_text: it may also be a text that does not begin with a brace.

        Raises:
            UserError: as `json`.
        """
        return self._compiled("calls", _spelled(schema), most, or_text)

    def _compile(self, kind: str, schema: str, most: int = 1, or_text: bool = False) -> MakeGuide:
        library = _library()
        if self._words is None:
            self._words = library.LLTokenizer(
                library.TokenizerWrapper(_Words(self._tokenizer, self._vocab_size)),
                n_vocab=self._vocab_size,
                eos_token=self._eos_ids,
            )
        options = {"whitespace_pattern": _SPACES}
        try:
            if kind == "json":
                grammar = library.LLMatcher.grammar_from_json_schema(schema, overrides=options)
            else:
                constrained = json.dumps({**json_value(schema), "x-guidance": options})
                more = f" (END call){{0,{most - 1}}}" if most > 1 else ""
                grammar = library.LLMatcher.grammar_from_lark(
                    f"start: {'TEXT | ' if or_text else ''}calls\ncalls: call{more}\nEND: /\\n/\n"
                    f"TEXT: /[^{{](.|\\n)*/\ncall: %json {constrained}\n"
                )
        except ValueError as error:  # it is too deep
            raise _cannot_be_followed(str(error)) from None
        limits = library.LLParserLimits(max_grammar_size=_MOST_GRAMMAR, verbose_errors=False)
        matcher = library.LLMatcher(self._words, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # here and not while others wait for the model
        if matcher.is_error() or matcher.is_stopped():
            raise _cannot_be_followed(matcher.get_error() or "nothing is JSON of it")
        probe, begin = matcher.deep_copy(), self._tokenizer.encode("{", "as_text")
        if probe.validate_tokens(begin) == len(begin):  # within the brace all properties are open at once
            probe.consume_tokens(begin)
            probe.compute_bitmask()
            if probe.is_error():
                raise _cannot_be_followed(probe.get_error())
        size = self._vocab_size
        return lambda: _LlGuide(matcher.deep_copy(), size)


class _LlGuide:
    """A state of a grammar."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher, self._size = matcher, vocab_size
        self.done = self.failed = False

    def allowed(self) -> torch.Tensor:
        """Which tokens may come, [V]; any where the grammar can be followed no longer, and then the next one ends it.
        Requests that run beside this one do not suffer from it.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self.failed = self._matcher.is_error()
        if self.failed:
            return torch.ones(self._size, dtype=torch.bool)
        return torch.from_numpy(np.unpackbits(bits, count=self._size, bitorder="little").astype(bool))

    def take(self, token: int) -> None:
        """Go on with a token that was chosen."""
        self.failed = self.failed or not self._matcher.consume_token(token)
        self.done = self.failed or self._matcher.is_stopped()


class _Words:
    """A tokenizer as the library wants it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        known = min(vocab_size, tokenizer.vocab_size)
        self.tokens = [tokenizer.token_bytes(id) for id in range(known)] + [b""] * (vocab_size - known)
        self.special_token_ids = [id for id in sorted(tokenizer.special_ids) if id < vocab_size]

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenizer.encode(text if isinstance(text, str) else text.decode("utf-8", "replace"), "as_text")


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise missing_extra("llguidance", "An answer that must be JSON") from None
    return llguidance


def _cannot_be_followed(reason: str) -> UserError:
    return UserError(f"The JSON schema cannot be followed: {_first_line(reason)}")


def _first_line(reason: str) -> str:
    return " ".join(reason.partition("<state>")[0].split())[:300]


def _spelled(schema: dict[str, Any]) -> str:
    text = json.dumps(schema, sort_keys=False)
    if len(text) > _MOST_SCHEMA:
        raise UserError(f"The JSON schema has {counted(len(text), 'characters')}; it may have {_MOST_SCHEMA:,}.")
    return text
