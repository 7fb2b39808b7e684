"""Commands of `lmlab ladder` beside those in cli.py, and what they share."""
