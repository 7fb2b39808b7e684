"""Code that models write: problems with tests, and running them where the code can harm nothing."""
