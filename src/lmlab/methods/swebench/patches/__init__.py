"""Unified diffs: read, split into tests and source, taken from answers, repaired, judged for safety."""
