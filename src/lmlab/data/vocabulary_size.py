"""How many tokens a tokenizer that is trained gets; it loads nothing."""

from __future__ import annotations

from pydantic import Field

from lmlab.config import Config


class VocabularySize(Config):
    """How many tokens a tokenizer has.

    Attributes:
        vocab_size: tokens of a tokenizer that is trained: 256 bytes, marks, and what is merged of them.
    """

    vocab_size: int = Field(default=4096, ge=257)
