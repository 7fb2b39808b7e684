"""Finding a circuit: trained gates, attributions, ACDC."""
