"""Weights from and to Hugging Face directories, GGUF and `peft`."""
