"""Documents of any length to sequences of one length that remember which documents they hold."""
