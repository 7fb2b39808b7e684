"""What is asked of a table of runs before laws are fitted to it."""
