"""lmlab: a laboratory for language models, from raw text to a model that its makers understand and can defend."""

__version__ = "0.1.0"
