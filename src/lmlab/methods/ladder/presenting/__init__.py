"""Results as rows of tables and as sentences, for the terminal and for pages."""
