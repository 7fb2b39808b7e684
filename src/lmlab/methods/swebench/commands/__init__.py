"""Commands of `lmlab swe` by subject."""
