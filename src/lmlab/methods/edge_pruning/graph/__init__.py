"""The graph of a model's parts, circuits in it, and their files."""
