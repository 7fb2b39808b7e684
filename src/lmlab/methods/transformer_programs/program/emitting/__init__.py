"""A program as Python that needs nothing but the standard library and its tables."""
