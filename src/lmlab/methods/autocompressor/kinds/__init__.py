"""Kinds of compression behind one interface: each file here registers its own, and one more kind is one more file."""
