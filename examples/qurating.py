"""QuRating (Wettig et al. 2024): choose a third of a corpus by ratings, with a temperature.

The ratings here are the shares of comments in modules of the standard library; a rater of your own gives others
(`lmlab quality train`, `lmlab.rate_texts`).

python examples/qurating.py
"""

import json
from pathlib import Path

import lmlab

files = sorted(Path(json.__file__).parents[1].glob("*.py"))
texts = [file.read_text("utf-8", "replace") for file in files]
table = {
    "id": [file.name for file in files],
    "length": [len(text.split()) for text in texts],
    "comments": [sum(line.lstrip().startswith("#") for line in text.splitlines()) / (len(text) + 1) for text in texts],
}
chosen = lmlab.select_texts(table, "33%", metric="comments", mode="sample", tau=0.5, skip_empty=True)
print(f"{len(chosen)} of {len(files)} modules, {chosen.num_tokens:,} words, first {', '.join(chosen.ids[:3])}")
