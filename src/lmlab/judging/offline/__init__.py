"""Judges of answers that ask nobody: by what a small encoder, a small language model or a classifier of one's own says
of each key point.
"""
