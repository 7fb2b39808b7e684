"""Training of many seeds at once, and sweeps of shapes."""
