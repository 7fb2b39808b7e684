"""Rubrics as data: what a judge is told about an answer, and how the grades are read from its reply."""
