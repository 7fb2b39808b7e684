"""Tables of rated rows on the disk: read, checked, and written, some rows at a time."""
