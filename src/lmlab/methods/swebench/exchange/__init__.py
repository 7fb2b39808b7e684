"""Instances in the forms of other harnesses."""
