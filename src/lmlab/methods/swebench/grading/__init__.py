"""From the log of a test run to a verdict: parsers, the rule of grading, reports of runs."""
