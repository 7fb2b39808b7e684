"""What is counted. Nothing heavy is imported here, so that help is instant."""

from __future__ import annotations

from pydantic import PositiveInt

from lmlab.config import Config


class WordsConfig(Config):
    """What is counted.

    Attributes:
        most: how many words are told.
        lower: take upper and lower case for the same.
    """

    most: PositiveInt = 20
    lower: bool = True
