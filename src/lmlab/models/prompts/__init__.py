"""Soft prompts: vectors before a text, and models that learn them."""
