"""What an attack reaches, and what it costs."""
