"""Where code that nobody trusts is run: in namespaces (bubblewrap), in containers (Docker), or, if somebody insists,
without walls.

with choose_executor("auto").open(Box(Path("tree"))) as session:
    result = session.run(["python3", "-m", "pytest"], sink=log)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
