"""What a user types first: `import lmlab`, then one function for each thing to do.

Each is thin: it finds the model or the file, and calls what the command of the same name calls. Places are strings or
paths; a model is whatever `lmlab.runs.Model.find` takes: a directory, a GGUF file, a checkpoint, a stage or a run.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
