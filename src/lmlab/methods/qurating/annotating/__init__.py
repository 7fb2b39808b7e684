"""Rating a corpus on the disk, by any number of processes."""
