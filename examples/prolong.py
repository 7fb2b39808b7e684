"""ProLong (Gao et al. 2024): at which length a model still finds values in a JSON object, and needles between passages.

python examples/prolong.py models/smollm2 512 1024
"""

import sys

import lmlab

if len(sys.argv) < 3:
    sys.exit(__doc__)
lengths = [int(length) for length in sys.argv[2:]]
found = lmlab.measure_long(sys.argv[1], tasks=["json_kv", "niah"], lengths=lengths, contexts=1)
for task, scores in found.items():
    print(f"{task}: {', '.join(f'{score:.2f} at {length} tokens' for length, score in scores.items())}")
