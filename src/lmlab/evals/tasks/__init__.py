"""What is asked: tasks as files of requests, the built-in catalogue, and questions made from text."""
