"""SWE-bench: instances from the source archives of small packages, as the package registry has them.

python benchmarks/swebench_mining.py --work FOLDER [--releases 7] [--mutants 5] [PACKAGE ...]

Runs `lmlab swe collect`, `validate` and `adequacy` for each package on its newest releases, and prints candidates,
valid and flaky ones, reasons, adequacy, and minutes, the environment included. What is in FOLDER is neither fetched nor
run again; of a package that was stopped and taken up again no minutes are told.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

# Small, of Python alone, with their tests in the archive; and what their tests need beside pytest
PACKAGES = {
    "cachetools": (),
    "tinydb": ("pyyaml",),
    "boltons": ("pytest<9",),
    "python-slugify": ("text-unidecode",),
    "sqlparse": (),
    "voluptuous": (),
    "xmltodict": (),
    "itsdangerous": ("freezegun",),
}


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        print(f"  {' '.join(command[:6])} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


def archives(package: str, count: int, folder: Path) -> list[Path]:
    """The newest archives of a package, the oldest first."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    folder.mkdir(parents=True, exist_ok=True)
    order = folder / "order.json"
    if not order.exists():
        listed = re.search(r"Available versions: (.*)", _run(*pip, "index", "versions", package))
        order.write_text(json.dumps(re.split(r",\s*", listed[1])[:count][::-1] if listed else []))
    found = []
    for version in json.loads(order.read_text()):
        name = f"{package.replace('-', '[-_]')}-{version}.tar.gz"
        if not list(folder.glob(name)):
            own = f"{package}=={version}"
            _run(*pip, "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(folder), own)
        found += list(folder.glob(name))
    return found


def mine(package: str, needs: tuple[str, ...], work: Path, releases: int, mutants: int) -> dict[str, object]:
    """What comes of a package."""
    places = archives(package, releases, work / "archives" / package)
    out = work / package
    begun, spent = out / "begun", out / "minutes.json"
    whole = not begun.exists()  # else a part of the time went by in another run
    out.mkdir(parents=True, exist_ok=True)
    begun.touch()
    lmlab = (sys.executable, "-m", "lmlab", "swe")
    began = time.monotonic()
    _run(*lmlab, "collect", *map(str, places), "--name", f"{package}/{package}", "--out", str(out))
    candidates = [json.loads(line) for line in (out / "candidates.jsonl").read_text().splitlines()]
    instances = []
    if candidates:
        wanted = [part for each in needs for part in ("--require", each)]
        _run(*lmlab, "validate", str(out / "candidates.jsonl"), "--timeout-s", "120", *wanted)
        instances = [json.loads(line) for line in (out / "instances.jsonl").read_text().splitlines()]
    if whole:
        spent.write_text(json.dumps(round((time.monotonic() - began) / 60, 2)))
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()] if candidates else []
    if instances and mutants:
        _run(*lmlab, "adequacy", str(out / "instances.jsonl"), "--full-suite", "--mutants", str(mutants))
        instances = [json.loads(line) for line in (out / "instances.jsonl").read_text().splitlines()]
    scores = [each["adequacy"] for each in instances if each.get("adequacy", {}).get("score") is not None]
    return {
        "package": package,
        "releases": len(places),
        "candidates": len(candidates),
        "valid": len(instances),
        "flaky tests": sum(len(each["flaky"]) for each in instances),
        "reasons": dict(Counter(each["reason"] for each in rejected)),
        "minutes": json.loads(spent.read_text()) if spent.exists() else None,
        "scores": [round(each["score"], 3) for each in scores],
        "covered": [round(each["covered"], 3) for each in scores if each["covered"] is not None],
        "surely wrong, accepted": [each["wrong"] for each in scores],
    }


def main() -> None:
    """Each package in its turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", default=list(PACKAGES))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--releases", type=int, default=7)
    parser.add_argument("--mutants", type=int, default=5)
    options = parser.parse_args()
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    rows = []
    for package in options.packages:
        row = mine(package, PACKAGES.get(package, ()), options.work, options.releases, options.mutants)
        rows.append(row)
        print(json.dumps(row), flush=True)
    candidates, valid = (sum(int(str(each[key])) for each in rows) for key in ("candidates", "valid"))
    scores = sorted(score for each in rows for score in each["scores"])  # type: ignore[attr-defined]
    print(f"all: {candidates} candidates, {valid} valid")
    if scores:
        fifths = Counter(min(int(5 * score), 4) for score in scores)
        print(f"adequacy of {len(scores)}: mean {statistics.fmean(scores):.2f}, median {statistics.median(scores):.2f}")
        print("  by fifths, the lowest first: " + ", ".join(str(fifths[each]) for each in range(5)))
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
