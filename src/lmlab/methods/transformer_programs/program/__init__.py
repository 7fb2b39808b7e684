"""Programs: their nodes, files, execution, Python text, and import."""
