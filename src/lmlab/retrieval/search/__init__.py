"""Finding the nearest vectors, and the documents with the same words."""
