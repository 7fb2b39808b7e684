"""Edge Pruning (Bhaskar et al. 2024): circuits of transformers."""
