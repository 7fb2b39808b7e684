"""Transformer Programs (Friedman, Wettig and Chen 2023): networks that are trained by gradient descent and are readable
programs under the arg max; their exact conversion, execution, verification, minimization and explanation.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
