"""From an issue to a patch: which files are shown, what is asked, who answers, and what is learned from it."""
