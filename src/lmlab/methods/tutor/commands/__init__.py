"""The commands of `lmlab tutor`, by subject."""
