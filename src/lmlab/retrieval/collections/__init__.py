"""Documents, queries and judgments."""
