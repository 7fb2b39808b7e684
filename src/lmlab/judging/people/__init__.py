"""Grades by people: tables of them, published sets with their labels, and pages on which people grade."""
