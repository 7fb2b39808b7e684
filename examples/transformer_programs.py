"""Transformer Programs (Friedman et al. 2023): train networks that count, and print the best one's program.

Two networks of one counting head and one table, half a minute on one core.

python examples/transformer_programs.py runs/hist-example
"""

import sys
from pathlib import Path

from lmlab.methods.transformer_programs import (
    ExportOptions,
    TrainedNetworks,
    TrainSettings,
    export_program,
    load_data,
    train,
)

if len(sys.argv) < 2:
    sys.exit(__doc__)
out = Path(sys.argv[1])
settings = TrainSettings(
    task="hist", size=4000, num_layers=1, cat_heads=0, num_heads=2, cat_mlps=0, seeds=2, epochs=20, evaluations=1
)
results = train(settings, out)
networks = TrainedNetworks.find(out)
manifest = export_program(
    networks.load(), networks.place_of(None), load_data(settings), out / "program", ExportOptions(minimize=True)
)
print(f"Accuracy of the program: {100 * results['test_accuracy']:.1f} % on test")
print(f"Equal to the network on {manifest['verification']['places']:,} places: {manifest['faithful']}")
print((out / "program" / "program.py").read_text())
