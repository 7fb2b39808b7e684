"""Context compression (Chevalier et al. 2023, "Adapting Language Models to Compress Contexts"): a model learns to write
a few vectors for a segment of text, and to read them in its place.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
