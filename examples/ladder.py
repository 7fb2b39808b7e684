"""Model ladders (Bhagia et al. 2024): predict a 7B model's accuracies from models of 190M to 1B parameters.

python examples/ladder.py runs.csv    # a run table, as `lmlab ladder collect` writes it
"""

import sys

import lmlab

if len(sys.argv) < 2:
    sys.exit(__doc__)
forecaster = lmlab.fit_ladder(sys.argv[1], tasks="arc_easy_val_5shot,hellaswag_val_5shot")
for each in forecaster.predict_all(6.9e9, 3.9e12, 0.9):  # parameters, tokens, share of outcomes in the intervals
    print(f"{each.task}: {each.accuracy:.1%} [{each.lo:.1%}, {each.hi:.1%}]")
