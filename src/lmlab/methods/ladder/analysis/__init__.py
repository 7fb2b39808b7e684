"""What surrounds a fit: backtests, ablations, comparisons, diagnoses, the next run."""
