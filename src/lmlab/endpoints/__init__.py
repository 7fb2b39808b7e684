"""Models behind an OpenAI-compatible API: a client of any.

`lmlab.endpoints.server` offers our own models as one, and `lmlab.endpoints.engine.local` asks them without a server;
these two load PyTorch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
