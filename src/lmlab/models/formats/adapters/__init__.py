"""Adapters in the files of the `peft` library."""
