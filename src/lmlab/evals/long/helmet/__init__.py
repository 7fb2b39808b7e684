"""HELMET's own data (Yen et al. 2024): configurations, files, names of results."""
