"""`python -m lmlab`, and `torchrun -m lmlab`."""

from lmlab.cli import main

main()
