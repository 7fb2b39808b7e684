"""Corpora as stores of summary vectors."""
