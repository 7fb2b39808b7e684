"""Many machines or many runs: Slurm jobs, sweeps."""
