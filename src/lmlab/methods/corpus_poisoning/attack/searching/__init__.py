"""How ids, or a language model's words, are searched for: what is optimized, on what budget, by which optimizer."""
