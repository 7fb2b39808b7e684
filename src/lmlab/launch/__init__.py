"""Jobs of clusters: submission scripts for Slurm."""
