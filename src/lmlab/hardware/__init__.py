"""What is computed on: devices, memory, threads, the faster library for a product, the faster of equal ways."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
