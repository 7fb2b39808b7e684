"""Runs as tables: reading, tasks, targets, writing."""
