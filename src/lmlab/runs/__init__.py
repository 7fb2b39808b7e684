"""Run directories and recipes: stages that are skipped when nothing they depend on has changed, and resume when they
were cut off.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
