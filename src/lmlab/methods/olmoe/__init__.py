"""OLMoE (Muennighoff et al. 2024): what routers do, measured; dense models upcycled to mixtures of experts; design
choices compared at toy scale.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
