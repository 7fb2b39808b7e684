"""Dialogues between teachers and students: written by models, and as sequences to learn from."""
