"""Dialogues about chapters: written by two models, by one, or by rule; and which of them are kept."""
