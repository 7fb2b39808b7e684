"""Crafting passages that land in front of many queries, to learn how many it takes."""
