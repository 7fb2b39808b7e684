"""Prompts with their corrupted twins, and the tasks that make them."""
