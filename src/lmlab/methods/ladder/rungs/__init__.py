"""Planning and training the small runs of a ladder."""
