"""`lmlab tutor`: grade tutors on whole chapters, build their dialogues, tune them."""

from __future__ import annotations

import typer

from lmlab.methods.tutor.commands import chatting

app = typer.Typer(
    no_args_is_help=True,
    help="Tutors: grade them on whole chapters, build their dialogues, tune them (TutorEval, TutorChat).",
)

app.command("chat-format", epilog=chatting.format_help)(chatting.chat_format)
app.command("chat-mix", epilog=chatting.mix_help)(chatting.chat_mix)
