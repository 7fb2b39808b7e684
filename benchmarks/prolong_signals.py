"""What foretells recall in a long window, and what searched factors are worth, on the models of `prolong_recall.py`.

    python benchmarks/prolong_recall.py --seeds 0 1 2 --out DIR
    python benchmarks/prolong_signals.py DIR/seed-0 [DIR/seed-1 ...] [--candidates 64]

For each directory, whose models share a tokenizer: the correlation over checkpoints (the base, the base under rules for
its frequencies, every variant) of the recall at 2,048 tokens with LongPPL and with plain perplexity. Key tokens are
found by the recipe's variant on other texts than those that recall is measured on. Then the base at 2,048 tokens, eight
times its window, without training: under each rule, and under factors that are searched on four texts; recall is that
of twelve others.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from prolong_recall import SHORT, answers, held_out, shares, with_interval

from lmlab.evals.long import LongPPLConfig, key_tokens, long_perplexity
from lmlab.methods.prolong.answered import Answered
from lmlab.methods.prolong.config import FactorSettings
from lmlab.methods.prolong.factors import known_factors, search_factors, with_factors
from lmlab.models import RopeScaling, from_pretrained

LENGTH = 2048  # tokens
KNOWN, ASKED = 4, 12  # texts that something may be found on, and those of which recall is told
LOCAL = LongPPLConfig(context=SHORT, slide=SHORT // 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--candidates", type=int, default=64)
    arguments = parser.parse_args()
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    start = time.process_time()
    for place in arguments.runs:
        run = place / "run"
        print(f"\n{place}", flush=True)
        searched = factors(run, arguments.candidates)
        signals(run, searched)
    print(f"{time.process_time() - start:.0f} processor seconds; load after: {os.getloadavg()[0]:.1f}")


def factors(run: Path, candidates: int) -> dict[str, Any]:
    """The base at eight times its window under every rule and under searched factors: its configurations."""
    base = from_pretrained(run / "base" / "model").eval()
    rows = held_out(run, LENGTH)
    texts = [_answered(row, run) for row in rows]
    settings = FactorSettings(to=LENGTH, candidates=candidates, tasks=["json_kv"])
    found = search_factors(base, _tokenizer(run), settings, None, texts[:KNOWN], texts[-KNOWN:])
    print(f"  {found.candidates} candidates; the best is {found.from_rule or 'none of the rules'}")
    told = ", ".join(f"{name} {value:.4f}" for name, value in found.heldout_nll.items())
    print(f"  nats a token of answers about four other texts: {told}")
    configs = {
        name: with_factors(base.config, LENGTH, each) for name, each in known_factors(base.config, LENGTH).items()
    }
    configs["searched"] = with_factors(base.config, LENGTH, found.factors)
    yarn = RopeScaling(type="yarn", factor=LENGTH / SHORT, original_max_seq_len=SHORT)
    configs["yarn, with its temperature"] = base.config.model_copy(update={"rope_scaling": yarn, "max_seq_len": LENGTH})
    plain = base.config
    for name, config in configs.items():
        base.config = config
        found_recall = with_interval(shares(base, run, LENGTH, KNOWN, ASKED))
        low, high = found_recall.bounds
        print(f"  {name:28} recall at {LENGTH:,}: {found_recall.value:.2f} ({low:.2f} to {high:.2f})", flush=True)
    base.config = plain
    return configs


def signals(run: Path, configs: dict[str, Any]) -> None:
    """The correlations of recall with LongPPL and with perplexity, both as logarithms."""
    rows = held_out(run, LENGTH)
    texts = [row["input_ids"][0][row["document_ids"][0] >= 0].tolist() for row in rows[:KNOWN]]
    keys = key_tokens(from_pretrained(run / "extended_auto" / "model").eval(), texts, LOCAL)
    found = []
    for name in ("base", *sorted(path.name for path in run.glob("extended_*"))):
        model = from_pretrained(run / name / "model").eval()
        for called, config in (configs if name == "base" else {"": None}).items():
            if config is not None:
                model.config = config
            model.config = model.config.model_copy(update={"max_seq_len": LENGTH})
            measured = long_perplexity(model, texts, keys, LOCAL)
            assert measured.long_perplexity is not None
            value = float(shares(model, run, LENGTH, KNOWN, ASKED).mean())
            found.append((value, math.log(measured.long_perplexity), math.log(measured.perplexity)))
            shown = f"recall {value:.2f}, LongPPL {measured.long_perplexity:.2f}, perplexity {measured.perplexity:.0f}"
            print(f"  {name} {called}: {shown}", flush=True)
    recalled, long, plain = np.array(found).T
    keyed = sum(map(len, keys))
    asked = sum(int(answers(row, run).sum()) for row in rows[:KNOWN])
    with_long, with_plain = (np.corrcoef(recalled, each)[0, 1] for each in (long, plain))
    print(
        f"  over {len(found)} checkpoints, recall and log LongPPL: {with_long:.2f}, log perplexity: {with_plain:.2f};"
        f" {keyed:,} key tokens, {asked:,} of answers"
    )


def _answered(row: dict[str, Any], run: Path) -> Answered:
    places = answers(row, run)[0].nonzero().flatten() + 1
    return Answered(row["input_ids"][0][row["document_ids"][0] >= 0].tolist(), places.tolist())


def _tokenizer(run: Path) -> Any:
    from lmlab.data import TokenizedCorpus

    return TokenizedCorpus(run / f"heldout_{LENGTH}").tokenizer


if __name__ == "__main__":
    main()
