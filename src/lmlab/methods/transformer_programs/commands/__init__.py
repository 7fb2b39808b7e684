"""What the commands of Transformer Programs share."""
