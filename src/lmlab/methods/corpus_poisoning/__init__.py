"""How robust one's own dense retriever is against crafted passages in its corpus, and what to do about it (Zhong et al.
2023): measure, gate, harden, and measure again.

This is a robustness evaluation of one's own retriever and one's own corpora. Defenses stand beside every attack figure.
Everything that is crafted is an overlay marked `"redteam": true` with a list of ids to remove; nothing is written
into a corpus or posted to an index, and the default payload is a harmless canary.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
