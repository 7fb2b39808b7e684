"""Memories: what stands for a text that was read before, as vectors or as keys and values, and how a model reads it."""
