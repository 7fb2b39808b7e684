"""What sources share in reading: which files and splits, damaged ones, and records that become documents."""
