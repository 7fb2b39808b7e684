"""Chapters of textbooks from the forms that books are written in: DocBook, reStructuredText, HTML, LaTeX, text."""
