"""What networks are made of: norms, feed-forward networks, linear maps."""
