"""What a tutor answers to the questions, locally or by an endpoint."""
