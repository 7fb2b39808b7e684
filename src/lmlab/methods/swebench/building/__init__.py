"""Benchmarks from any repository: candidates out of its history, and the tests that show which of them are valid."""
