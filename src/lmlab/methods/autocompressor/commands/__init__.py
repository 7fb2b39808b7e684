"""The commands of `lmlab compress`, one file a subject."""
