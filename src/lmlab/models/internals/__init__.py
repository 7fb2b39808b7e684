"""Inside a pass: names for its intermediates, and parts of a block by themselves."""
