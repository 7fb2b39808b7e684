"""Many processes: shards of tensors, copies of data, experts."""
