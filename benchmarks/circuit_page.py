"""How long a browser takes to draw a circuit of 10,000 edges, and for each thing that a reader does to it.

    python benchmarks/circuit_page.py --edges 10000

The page of a random circuit in the graph of GPT-2's shape is opened in headless Chromium; a script within it moves the
slider, filters, and points at a head, and takes the time of each until the layout is done (painting is not in it).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

_SCRIPT = """
const figure = document.querySelector("[data-graph]"), svg = figure.querySelector("svg");
const slider = figure.querySelector(".graph-slider"), filter = figure.querySelector(".graph-filter"), found = [];
const take = (what, act) => {
  const begin = performance.now();
  act();
  svg.querySelector("g").getBoundingClientRect();
  found.push([what, Number(svg.dataset.edges), performance.now() - begin]);
};
const slide = (value) => { slider.value = value; slider.dispatchEvent(new Event("input")); };
for (const value of [1000, 0, 500, 750, 900, 950, 1000]) take("slider", () => slide(value));
take("filter", () => { filter.value = "a3. m5"; filter.dispatchEvent(new Event("input")); });
take("no filter", () => { filter.value = ""; filter.dispatchEvent(new Event("input")); });
const head = Array.from(svg.querySelectorAll(".graph-node")).find((each) => each.dataset.name === "m5");
take("pointed at", () => head.dispatchEvent(new Event("pointerenter")));
take("left", () => head.dispatchEvent(new Event("pointerleave")));
take("moved", () => svg.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft", cancelable: true })));
document.body.dataset.found = JSON.stringify(found);
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    import torch

    from lmlab.methods.edge_pruning import Circuit, CircuitGraph, GraphOptions
    from lmlab.methods.edge_pruning.report import circuit_page
    from lmlab.models import ModelConfig

    shape = {"vocab_size": 50_257, "num_layers": 12, "d_model": 768, "num_heads": 12, "max_seq_len": 1024}
    graph = CircuitGraph(ModelConfig(**shape, positions="learned"), GraphOptions(join_embeddings=True))
    scores_E = torch.rand(graph.num_edges, generator=torch.Generator().manual_seed(0))
    kept_E = torch.zeros(graph.num_edges, dtype=torch.bool)
    kept_E[scores_E.argsort(descending=True)[: arguments.edges]] = True
    best: dict[tuple[str, int, int], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        circuit_page(Circuit(graph, kept_E, "interchange", scores_E)).write(page)
        print(f"{arguments.edges:,} of {graph.num_edges:,} edges, {page.stat().st_size / 1e6:.2f} MB")
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
        page.write_text(text.replace("</body>", f"<script>{_SCRIPT}</script></body>"))
        for _ in range(arguments.turns):
            command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"]
            profile = f"--user-data-dir={folder}/profile"
            done = subprocess.run([*command, profile, page.as_uri()], capture_output=True, text=True, check=True)
            match = re.search(r'data-found="([^"]*)"', done.stdout)
            assert match is not None, done.stderr[-500:]
            for number, (what, shown, taken) in enumerate(json.loads(match[1].replace("&quot;", '"'))):
                key = (what, number, shown)
                best[key] = min(taken, best.get(key, taken))
    print(f"load {os.getloadavg()[0]:.1f}; least of {arguments.turns} times")
    print("| what | edges shown | ms |\n|---|---|---|")
    for (what, _, shown), taken in best.items():
        print(f"| {what} | {shown:,} | {taken:.0f} |")


if __name__ == "__main__":
    main()
