"""The compressor: its network, how texts are cut, its files."""
