"""Traces of what routers choose, and their statistics."""
