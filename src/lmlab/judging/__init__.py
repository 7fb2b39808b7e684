"""Judges: who says which of two texts is the better one, or how good one is; and how far that can be trusted."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
