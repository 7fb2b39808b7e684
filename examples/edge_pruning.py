"""Edge Pruning (Bhaskar et al. 2024): the circuit of a compiled program, beside the one that is known.

ACDC finds it in seconds; without `method` it is learned by edge-pruning, which takes a minute or two.

python examples/edge_pruning.py programs/reverse    # a folder that benchmarks/tracr_compile.py writes
"""

import json
import sys
from pathlib import Path

import lmlab

if len(sys.argv) < 2:
    sys.exit(__doc__)
program = Path(sys.argv[1])
circuit = lmlab.find_circuit(program, ablation="zero", method="acdc")
known = {tuple(edge) for edge in json.loads((program / "ground_truth.json").read_text())["zero_ablation"]["edges"]}
found = set(circuit.edges)
print(f"{len(found)} of {circuit.graph.num_edges} edges, {len(found & known)} of the {len(known)} known ones")
