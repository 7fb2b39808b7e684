"""Attention: the layer, its back ends, rotary positions, and who sees whom."""
