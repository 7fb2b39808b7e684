"""Conversations and preferences: templates, tokens with masks, rows for tuning."""
