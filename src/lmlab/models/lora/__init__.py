"""Low-rank adapters (LoRA): their settings, the layers that carry them, and putting them beside a model's weights."""
