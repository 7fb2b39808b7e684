"""What is asked: tasks as files of requests, the built-in catalog, and questions made from text."""
