"""Kinds of compression that learn, on tokenized text: rows, a stage's training, and the files of what was trained."""
