"""Answers that are judged: what is known of each, who judges it, and the rows of grades."""
