"""From sources to clean documents: duplicates, evaluation text and held-out groups taken out, in bounded memory."""
