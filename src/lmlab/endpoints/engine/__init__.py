"""Our own models as endpoints: many requests in one running batch, with shared prefixes."""
