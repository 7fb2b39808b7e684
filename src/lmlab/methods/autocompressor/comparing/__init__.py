"""Kinds of compression beside each other: the same questions about the same contexts, at equal key-value positions."""
