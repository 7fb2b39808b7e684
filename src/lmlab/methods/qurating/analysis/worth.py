"""What a choice cost, by the replies that were kept, and what it brought, by models that were trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.errors import UserError, reads
from lmlab.files import read_mapping
from lmlab.methods.qurating.report import comparison_table
from lmlab.reports import Block, Facts, Note, Section, Table
from lmlab.reports.blocks import NoteKind
from lmlab.stats import t_interval
from lmlab.words import counted

_REPLIES, _COMPARISON = "replies.sqlite", "comparison.json"
_MEGA = 1e6


def worth_sections(selection: Path, judged: Path | None, compared: Sequence[Path]) -> list[Section]:
    """Cost and effect of a choice, as far as they are known.

    Arguments:
        selection: folder that `lmlab quality select` wrote.
        judged: folder that `lmlab quality judge` or the stage `quality_judge` wrote.
        compared: folders that the stage `quality_compare` wrote, one for each seed.

    Raises:
        UserError: a folder is none of these, or one is given twice.
    """
    tokens = int(read_mapping(selection / "selection.json")["tokens"])
    sections = [] if judged is None else [Section("What it cost", _cost(judged, tokens))]
    return sections + ([Section("What it brought", _effect(compared))] if compared else [])


def _cost(judged: Path, tokens: int) -> list[Block]:
    from lmlab.endpoints.client.cache import kept_in

    file = judged / _REPLIES
    if not file.is_file():
        if not (judged / "judging.json").is_file():
            raise UserError(
                f"'{judged}' is no folder of judgments.", "Name the one that `lmlab quality judge` wrote with --judged."
            )
        return [Note("The judge was no endpoint, so that no reply was paid for.", "info")]
    blocks: list[Block] = []
    for kept in kept_in(file):
        paid = None if kept.cost_usd is None else kept.cost_usd + kept.unusable_usd
        facts = {
            "Judge": kept.model,
            "Replies": f"{sum(kept.replies.values()):,}",
            "Tokens of prompts, of answers": f"{kept.prompt:,}, {kept.completion:,}",
            "Paid": "unknown, as no price was given" if paid is None else f"${paid:.4f}",
        }
        if paid is not None:
            facts["For a million of the chosen tokens"] = f"${paid / max(1, tokens) * _MEGA:.4f}"
        blocks.append(Facts(facts))
        if kept.unpriced and paid is not None:
            blocks.append(
                Note(f"{counted(kept.unpriced, 'replies')} have no known price and are not in it.", "warning")
            )
    return [*blocks, Note("Time of rating and training is not in it.", "info")]


def _effect(compared: Sequence[Path]) -> list[Block]:
    for number, each in enumerate(compared):
        if each.resolve() in [other.resolve() for other in compared[:number]]:
            raise UserError(f"'{each}' is given twice with --compared.", "Name one folder for each seed.")
    found = [_comparison(each) for each in compared]
    differences = [float(each["mean_difference"]) for each in found]
    if len(found) == 1:
        mean, error = differences[0], float(found[0]["error"])
        low, high = mean - 2 * error, mean + 2 * error
        told = f"{mean:+.3f} ± {error:.3f} bits a byte, mean over domains, one seed"
    else:
        interval = t_interval(differences)
        mean, low, high = float(np.mean(differences)), float(interval.low), float(interval.high)
        told = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}] bits a byte, mean over domains and {len(found)} seeds"
    kind: NoteKind = "good" if high < 0 else "bad" if low > 0 else "info"
    helped = {"good": "The choice helped", "bad": "The choice hurt", "info": "No difference is shown"}[kind]
    blocks: list[Block] = [Note(f"{helped}: {told}.", kind)]
    if len(found) > 1:
        rows: list[list[Any]] = [[str(number), each] for number, each in enumerate(differences, 1)]
        columns = ["seed", "difference, bits a byte"]
        blocks.append(Table(columns, rows, "Chosen less uniform text, by seed; the interval is Student's, of 95 %."))
    which = [f"Seed {number}. " if len(found) > 1 else "" for number in range(1, len(found) + 1)]
    blocks += [comparison_table(each, told) for each, told in zip(found, which, strict=True)]
    return [*blocks, Note("Small models trained for a short time; a large one may gain less or more.", "info")]


@reads("what the stage `quality_compare` wrote")
def _comparison(folder: Path) -> dict[str, Any]:
    file = folder / _COMPARISON
    if not file.is_file():
        raise UserError(
            f"'{folder}' has no {_COMPARISON}.", "Name a folder of the stage `quality_compare` with --compared."
        )
    found = read_mapping(file)
    return {**found, "mean_difference": float(found["mean_difference"]), "error": float(found["error"])}
