"""The commands `lmlab poison`, by subject."""
