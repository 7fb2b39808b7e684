"""Data selection by perceived quality (Wettig et al. 2024): judge pairs of texts, train a rater, rate a corpus, sample
from it by rating.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
