"""What summaries are worth: perplexity, demonstrations, retrieval."""
