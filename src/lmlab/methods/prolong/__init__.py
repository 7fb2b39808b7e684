"""Long context: extend a model's window, train on it, and measure it (Gao et al. 2024, "How to Train Long-Context
Language Models (Effectively)").
"""
