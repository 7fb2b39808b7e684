"""The commands `lmlab judge`: grade answers, and find out how far the grades can be trusted."""
