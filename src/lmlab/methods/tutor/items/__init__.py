"""Questions about chapters, with the points that an answer has to make."""
