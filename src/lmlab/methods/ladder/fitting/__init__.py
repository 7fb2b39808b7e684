"""The laws and their fit: loss and accuracy as chains, with intervals."""
