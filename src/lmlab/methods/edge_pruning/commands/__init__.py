"""Commands of `lmlab circuits` beside those in cli.py, and what they share."""
