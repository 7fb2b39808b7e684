"""What recipes are made of: each file is one kind of stage, a thin layer between a recipe and the packages that do the
work.
"""
