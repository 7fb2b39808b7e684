"""`lmlab poison`: how robust one's own retriever is against crafted passages, and what stops them.

This measures and hardens one's own retriever on one's own corpora; it writes overlays that are marked and can be
removed, and nothing into a corpus or an index.
"""

from __future__ import annotations

import typer

from lmlab.methods.corpus_poisoning.commands import crafting, detecting, files, measuring

app = typer.Typer(
    no_args_is_help=True,
    help="Robustness of one's own retriever: craft passages, measure, gate, harden, measure again.",
)
detect_app = typer.Typer(no_args_is_help=True, help="Detectors: fit a gate, score passages, sweep thresholds.")

app.command(epilog=crafting.craft_help)(crafting.craft)
app.command(epilog=measuring.evaluate_help)(measuring.evaluate)
app.command(epilog=measuring.transfer_help)(measuring.transfer)
app.command(epilog=measuring.answers_help)(measuring.answers)
app.command(epilog=measuring.memory_help)(measuring.memory)
app.add_typer(detect_app, name="detect")
detect_app.command("fit", epilog=detecting.detect_fit_help)(detecting.detect_fit)
detect_app.command("score", epilog=detecting.detect_score_help)(detecting.detect_score)
detect_app.command("sweep", epilog=detecting.detect_sweep_help)(detecting.detect_sweep)
app.command(epilog=detecting.gate_help)(detecting.gate)
app.command(epilog=measuring.report_help)(measuring.report)
app.command("import", epilog=files.import_help)(files.import_)
app.command(epilog=files.export_help)(files.export)
app.command(epilog=crafting.harden_help)(crafting.harden)
