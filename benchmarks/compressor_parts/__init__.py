"""The parts of `autocompressor.py`."""
