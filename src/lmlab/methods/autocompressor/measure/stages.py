"""The stage `compress_ppl`: what a compressor's summaries are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmlab.data import read_documents
from lmlab.methods.autocompressor.measure.pages import ppl_section
from lmlab.methods.autocompressor.measure.run import measure_texts
from lmlab.methods.autocompressor.training.config import CompressPplConfig
from lmlab.reports import Section
from lmlab.runs import Documents, Results, Stage, StageContext


class CompressPplResults(Results):
    """The figures of `ppl.json`."""

    texts: int
    too_short: int
    lines: dict[str, Any]
    gain_retained: dict[str, Any]
    refused: dict[str, str]
    settings: dict[str, Any]


class CompressPpl(Stage[CompressPplConfig, CompressPplResults]):
    """Writes rows.jsonl and ppl.json."""

    def run(self, config: CompressPplConfig, context: StageContext) -> CompressPplResults:
        """Measure; documents that an earlier attempt measured are not read again."""
        texts = read_documents(context.find(Documents, "documents").split(config.split))
        places = {name: str(context.inputs[name]) for name in ("rmt", "base") if getattr(config, name) is not None}
        found = measure_texts(str(context.inputs["compressor"]), texts, config, context.directory, places)
        return CompressPplResults(**found)

    def summary(self, results: CompressPplResults) -> str:
        """What the longest compressed context is worth."""
        last = next(name for name in reversed(results.lines) if name.startswith("summary/"))
        cell = results.lines[last]
        gain = f", {cell['gain']['nats']:+.3f} nats by context" if "gain" in cell else ""
        return f"perplexity {cell['perplexity']:.3f} after {last.partition('/')[2]} compressed tokens{gain}."

    def report(self, config: CompressPplConfig, results: CompressPplResults, directory: Path) -> list[Section]:
        """The section of `lmlab compress report`."""
        return [ppl_section(results.to_json(), directory)]
