"""A step of decoding, made fast: few operators, recorded launches, packed weights, large pages."""
