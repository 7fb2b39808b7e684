"""Is one model better than another? Tests over the same questions."""
