"""`lmlab tutor`: grade tutors on whole chapters, build their dialogues, tune them."""

from __future__ import annotations

import typer

from lmlab.methods.tutor.commands import asking, chatting

app = typer.Typer(
    no_args_is_help=True,
    help="Tutors: grade them on whole chapters, build their dialogues, tune them (TutorEval, TutorChat).",
)

app.command(epilog=asking.generate_help)(asking.generate)
app.command(epilog=asking.grade_help)(asking.grade)
app.command(epilog=asking.report_help)(asking.report)
app.command(epilog=asking.compare_help)(asking.compare)
app.command(epilog=asking.rank_help)(asking.rank)
app.command("dialogue-eval", epilog=asking.dialogue_help)(asking.dialogue_eval)
app.command("import", epilog=asking.import_help)(asking.import_)
app.command(epilog=asking.export_help)(asking.export)
app.command("chat-generate", epilog=chatting.generate_help)(chatting.chat_generate)
app.command("chat-format", epilog=chatting.format_help)(chatting.chat_format)
app.command("chat-mix", epilog=chatting.mix_help)(chatting.chat_mix)
