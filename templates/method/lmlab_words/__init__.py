"""Words: a method in the smallest form, to be copied and changed."""
