"""Controls: tests with bodies that must fail, and their place in a tree."""
