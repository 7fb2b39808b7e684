"""From judgments to ratings: pairs, excerpts, the rater, its loss and training, annotation of corpora."""
