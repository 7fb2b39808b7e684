"""The kinds of long-context tasks, one file a family."""
