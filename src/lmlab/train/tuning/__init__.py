"""Learning from preferences: losses and the reference model."""
