"""The demo's figures: wall time of a fresh run and of a second one, the model beside its baselines, accuracy beside
chance, utilization.

    python benchmarks/demo.py [--out DIR] [--set KEY=VALUE ...]

Prints the table that the README shows. DIR must not exist; without it a temporary directory is used.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lmlab.files import read_json


def main() -> None:
    """Run the demo twice and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="lmlab-demo-"), "run")
    if out.exists():
        parser.error(f"'{out}' exists; a fresh run is measured")
    command = [
        sys.executable,
        "-P",  # files of the folder that it is started in are no libraries
        "-m",
        "lmlab.cli",
        "demo",
        "--out",
        str(out),
        *(f"--set={each}" for each in arguments.set),
    ]
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds.append(time.perf_counter() - start)
    results = read_json(out / "results.json")
    training, measured = results["model"], results["evaluation"]["measured"]
    print(f"fresh run {seconds[0]:.1f} s, second run {seconds[1]:.1f} s")
    print(
        f"{training['parameters']:,} parameters, {training['tokens']:,} tokens, {training['tokens_per_second']:,.0f}"
        f" tokens/s, {training['utilization']:.1%} of the measured GEMM peak ({training['gemm_peak_flops'] / 1e9:.0f}"
        " GFLOP/s)\n"
    )
    domains = list(measured["model"]["bits_per_byte"])
    print("| bits per byte | " + " | ".join(domains) + " |\n|---|" + "---|" * len(domains))
    for name, found in measured.items():
        cells = []
        for domain in domains:
            value, ours = found["bits_per_byte"][domain], measured["model"]["bits_per_byte"][domain]["value"]
            error = f" ± {value['standard_error']:.3f}" if value["standard_error"] else ""
            cells.append(
                f"{value['value']:.3f}{error}" + ("" if name == "model" else f" ({value['value'] / ours:.2f}x)")
            )
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\n| ranked accuracy | all | " + " | ".join(domains) + " |\n|---|---|" + "---|" * len(domains))
    for name, found in measured.items():
        if "accuracy" in found:
            cells = [
                f"{found['accuracy'][key]['value']:.1%} ± {found['accuracy'][key]['standard_error']:.1%}"
                for key in ("all", *domains)
            ]
            print(f"| {name} | " + " | ".join(cells) + " |")
    print(f"| chance | {results['evaluation']['chance']['all']:.0%} |")


if __name__ == "__main__":
    main()
