"""lmlab: a laboratory for language models, from raw text to a model that its makers understand and can defend."""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
