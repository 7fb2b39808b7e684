"""What a rating is about: bias, extremes, other scorers, weights of criteria."""
