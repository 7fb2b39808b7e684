"""Files and where they are: whole or not there, local or remote, packed or not, read strictly, known by a digest."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
