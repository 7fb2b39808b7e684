"""The constrained network, its conversion to a program and back, and checkpoints of the reference."""
