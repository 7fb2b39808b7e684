"""Asking any OpenAI-compatible endpoint: limits, retries, a cache of replies, costs."""
