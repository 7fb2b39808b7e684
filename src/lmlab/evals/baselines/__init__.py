"""What a model is measured against without another model: n-grams, and compressors."""
