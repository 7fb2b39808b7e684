"""What one pass takes, what its blocks share, and what it gives."""
