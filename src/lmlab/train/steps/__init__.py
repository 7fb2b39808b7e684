"""What is learned at a step: step functions, what they return, and what stands around them."""
