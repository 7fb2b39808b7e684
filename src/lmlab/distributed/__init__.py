"""Many processes: those of one job, many jobs side by side, and claims of work among whoever works on it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
