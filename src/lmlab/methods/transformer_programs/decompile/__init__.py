"""Language models as readable programs of averages: written out as paths, pruned, and said by rules."""
