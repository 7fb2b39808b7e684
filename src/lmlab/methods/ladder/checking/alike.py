"""What makes runs, or the ladders of several recipes, hard to compare."""

from __future__ import annotations

from collections.abc import Mapping

from lmlab.methods.ladder.tables.table import RunTable

_MUST_AGREE = ("tokenizer", "context", "n_definition")  # also of recipes that are compared


def between(tables: Mapping[str, RunTable]) -> list[str]:
    """What makes the ladders of several recipes hard to compare, beyond what each one's own runs do."""
    found = []
    for key in _MUST_AGREE:
        told = {name: {str(r.metadata[key]) for r in each if r.metadata.get(key)} for name, each in tables.items()}
        values = set().union(*told.values())
        if len(values) > 1 and any(len(of_one) < 2 for of_one in told.values()):
            found.append(f"the recipes differ in {key.replace('_', ' ')} ({', '.join(sorted(values))}).")
    return found


def mismatches(table: RunTable) -> list[str]:
    """What makes runs of a ladder hard to compare: several tokenizers, contexts, corpora or counts of N, and repeated
    data.
    """
    found = []
    meaning = {
        "tokenizer": "bits per byte can be compared, nats a token cannot",
        "context": "losses depend on the context",
        "n_definition": "N must be counted in one way",
        "corpus": "the law assumes one mix of data",
        "family": "each has a law of its own, which --family NAME fits with exponents that the others lend",
    }
    for key, why in meaning.items():
        values = {str(run.metadata[key]) for run in table if run.metadata.get(key) not in (None, "")}
        if len(values) > 1:
            found.append(f"the runs differ in {key.replace('_', ' ')} ({', '.join(sorted(values))}): {why}.")
    repeated = [run.name for run in table if run.epochs > 1]
    if repeated:
        found.append(
            f"data are repeated in {', '.join(repeated)}: repeats are worth less than new text, and count so in the"
            " law (Muennighoff et al. 2023)."
        )
    return found
