"""The published methods, one package each. A method builds on the core and never on another method."""
