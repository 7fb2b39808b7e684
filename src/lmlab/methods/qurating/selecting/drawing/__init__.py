"""The arithmetic of a random choice: keyed noise, chances, thresholds."""
