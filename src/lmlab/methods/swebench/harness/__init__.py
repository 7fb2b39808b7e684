"""Patches put to the test: applied, tested, controlled, reported."""
