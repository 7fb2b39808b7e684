"""OLMoE (Muennighoff et al. 2024): how evenly a model's routers use their experts.

python examples/olmoe.py models/olmoe 'texts/*.jsonl.zst'    # any mixture of experts; here one that reads bytes
"""

import sys

import numpy as np

import lmlab
from lmlab.methods.olmoe import load_summary

if len(sys.argv) < 3:
    sys.exit(__doc__)
trace = lmlab.trace_routing(sys.argv[1], sys.argv[2], tokenizer="bytes", length=128, sequences=20)
for place, layer in enumerate(trace.layers):
    counts_E = np.bincount(trace.expert_ids_STLk[:, :, place].ravel(), minlength=trace.num_experts)
    load = load_summary(counts_E)
    print(f"layer {layer}: the busiest of {trace.num_experts} experts has {load['max_over_mean']:.2f} times its share")
