"""Where documents come from. A source is chosen in a recipe by its `kind`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
