"""A simulated student: conversations of several turns with a tutor, graded as a whole."""
