"""What is done with a program: verifying, minimizing, measuring, explaining."""
