"""The verbs of `lmlab quality`, by subject."""
