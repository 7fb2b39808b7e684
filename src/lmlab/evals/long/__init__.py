"""Long-context tasks: real text at an exact length of the measured model's tokens, built, asked, and reported."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
