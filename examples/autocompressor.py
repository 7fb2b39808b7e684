"""AutoCompressor (Chevalier et al. 2023): a model reads a text in segments, writes vectors, and goes on behind them.

python examples/autocompressor.py models/smollm2 README.md

The summary tokens are fresh here: what they tell must be learned first (recipes/compress-laptop.yaml).
"""

import sys

import torch

from lmlab.methods.autocompressor import AutoCompressor
from lmlab.runs import Model

if len(sys.argv) < 3:
    sys.exit(__doc__)
place, file = sys.argv[1:3]
tokenizer = Model.find(place).tokenizer()
compressor = AutoCompressor.from_base(place, summary_length=8)
with open(file, encoding="utf-8") as text:
    ids = tokenizer.encode_prompt(text.read())[:300]
vectors = compressor.compress(torch.tensor([ids]), segment_lengths=100)
print(f"{len(ids)} tokens in {vectors.segments} segments became {vectors.length} vectors")

question = tokenizer.encode(" In short:")
found = compressor.generate(
    [question], soft_prompt=vectors, compress_every=20, max_new_tokens=40, temperature=0, decode=tokenizer.decode
)[0][0]
print(f"{found.completion.text!r}, with {found.compressions} compressions on the way")
