"""Edge Pruning (Bhaskar et al. 2024): circuits of transformers, found by training a gate for every edge; with its
baselines, measures and tasks.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
