"""The group `lmlab judge`, from the commands of three subjects."""

from __future__ import annotations

import typer

from lmlab.commands.judging import grading, measuring, people

app = typer.Typer(no_args_is_help=True)

app.command(epilog=grading.run_help)(grading.run)
app.command(epilog=grading.cost_help)(grading.cost)
app.command("cache-stats", epilog=grading.cache_stats_help)(grading.cache_stats)
app.command(epilog=grading.parse_help)(grading.parse)
app.command(epilog=grading.rubrics_help)(grading.rubrics)
app.command(epilog=measuring.validate_help)(measuring.validate)
app.command(epilog=measuring.calibrate_help)(measuring.calibrate)
app.command(epilog=measuring.estimate_help)(measuring.estimate)
app.command(epilog=people.draw_help)(people.draw)
app.command("review-export", epilog=people.review_export_help)(people.review_export)
app.command("review-import", epilog=people.review_import_help)(people.review_import)
app.command(epilog=people.mrbench_help)(people.mrbench)
app.command(epilog=people.judgebench_help)(people.judgebench)
