"""The parts of `gpu.py`, one a file, and what they share."""
