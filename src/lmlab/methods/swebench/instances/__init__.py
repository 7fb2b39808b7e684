"""Instances of issue-resolving benchmarks: one type, and every layout in which they are published."""
