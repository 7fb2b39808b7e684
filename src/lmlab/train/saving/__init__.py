"""Checkpoints: written whole, found, verified, copied to a URL, and gone on from."""
