"""Sources whose documents are called by their places."""

from __future__ import annotations

from typing import Self

from pydantic import PrivateAttr

from lmlab.config import Config


class PlacedSource(Config):
    """A source that calls a document without an id of its own by its place within the source, which stays when all of
    it moves.
    """

    _prefix: str = PrivateAttr(default="")

    def apart(self, number: int) -> Self:
        """A copy whose documents without an id of their own are told from those of other sources: of several sources
        the second and later ones put their number before it; no place begins like that.

        Arguments:
            number: of the source, from 1.
        """
        copy = self.model_copy()
        copy._prefix = self._prefix if number == 1 else f"{number}//"
        return copy
