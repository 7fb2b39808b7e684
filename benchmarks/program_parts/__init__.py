"""Parts of `benchmarks/programs.py` with their own data."""
