"""Demonstrations in the context: plain, compressed, or both."""
