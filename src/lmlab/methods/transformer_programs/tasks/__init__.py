"""RASP tasks, their generators and oracles, and labeled data of users."""
