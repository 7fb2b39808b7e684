"""From ratings to a choice of documents: keys, inclusion probabilities, plans, materialization."""
