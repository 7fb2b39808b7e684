"""The judges: models behind endpoints, models in this process, rules; and how one is found by its name."""
