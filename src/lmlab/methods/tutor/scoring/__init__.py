"""Grades of answers, the figures made of them, and tutors side by side."""
