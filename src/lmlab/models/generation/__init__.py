"""Decoding: sampling, batches, streams, stop strings."""
