"""The commands, one file a subject. They import nothing heavy until they run, so that help is instant.

An entry point in the group `lmlab.commands` mounts a Typer application under its name: `lmlab NAME VERB`. So methods,
and other packages, add theirs.
"""
