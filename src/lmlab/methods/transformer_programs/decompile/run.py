"""From a language model to a program of averages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.methods.transformer_programs.config import DecompileConfig
from lmlab.methods.transformer_programs.decompile.answers import (
    Answers,
    Asked,
    answered,
    ask,
    form_answers,
    match,
    placed,
)
from lmlab.methods.transformer_programs.decompile.form import Form
from lmlab.methods.transformer_programs.decompile.paths import Paths, check, train_gates
from lmlab.methods.transformer_programs.decompile.simplify import Judge, simplify
from lmlab.models import Transformer
from lmlab.progress import console

_HELD = 4  # of the sequences, one in so many is not used to find the program
_SELECTED = 384  # sequences that changes are judged on
_MEASURED = 256  # sequences on which norms are measured


@dataclass(frozen=True)
class Decompiled:
    """A program, and how far it answers as its model does.

    Attributes:
        token_ids, label_ids: the ids of its tokens and of its answers.
        match, whole: the share of places, and of whole sequences, that were not used to find it.
        paths: how many maps the model had as paths, after gates, and at the end.
        seconds: of the processor.
    """

    form: Form
    token_ids: tuple[int, ...]
    label_ids: tuple[int, ...]
    match: float
    whole: float
    paths: dict[str, int]
    seconds: float

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"match": self.match, "whole_sequences": self.whole, "paths": self.paths, "cpu_seconds": self.seconds}


def decompile(
    model: Transformer, asked: Asked, names: Sequence[str], config: DecompileConfig | None = None
) -> Decompiled:
    """Turn a model into a program.

    Arguments:
        asked: sequences as the model knows them; a part of them is held back.
        names: of all its ids.

    Raises:
        UserError: the model cannot be written out, or there are too few sequences.
    """
    config, before = config or DecompileConfig(), time.process_time()
    check(model)
    if len(asked) < 2 * _HELD:
        raise UserError(f"{len(asked)} sequences are too few to tell a program by.", "Give more data.")
    torch.manual_seed(config.noise_seed)
    token_ids = sorted({each for row in asked.ids for each in row})
    where = placed(model, asked, config.offsets, config.noise_seed)
    label_ids = answered(model, where)
    if len(label_ids) < 2:
        raise UserError(f"The model answers {names[label_ids[0]]!r} everywhere: there is nothing to read.")
    answers = ask(model, where, token_ids, label_ids)
    held = len(asked) // _HELD
    index = torch.randperm(len(asked), generator=torch.Generator().manual_seed(config.noise_seed))
    test, learned = answers.rows(index[:held]), answers.rows(index[held:])
    chosen = learned.rows(torch.arange(min(_SELECTED, len(learned))))

    def batch(step: int) -> Answers:
        generator = torch.Generator().manual_seed(config.noise_seed * 1_000_003 + step)
        return learned.rows(torch.randint(0, len(learned), (config.batch_size,), generator=generator))

    def tensors(step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        part = batch(step)
        return part.tokens_BT, part.positions_BT, part.real_BT, part.wanted_BTC

    some = learned.rows(torch.arange(min(_MEASURED, len(learned))))
    ids = torch.tensor(token_ids)[some.tokens_BT]
    paths = Paths(model, token_ids, label_ids, ids, some.positions_BT, some.real_BT)
    tokens, labels = [names[each] for each in token_ids], [names[each] for each in label_ids]
    written = len(paths.form(tokens, labels).maps)
    train_gates(paths, tensors, config.steps, config.path_cost)
    form = paths.form(tokens, labels)
    gated = len(form.maps)
    console.print(f"{written} paths; {gated} behind open gates, {match(form, chosen)[0]:.1%} as the model.")
    form = simplify(form, Judge(chosen, batch, config.match), config.steps // 2)
    same, whole = match(form, test)
    counts = {"written": written, "gated": gated, "left": len(form.maps)}
    spent = time.process_time() - before
    return Decompiled(form, tuple(token_ids), tuple(label_ids), same, whole, counts, spent)


def measure(found: Decompiled, model: Transformer, asked: Asked, offsets: int = 0) -> dict[str, float]:
    """How a program and its model answer further sequences: the share of places, and of whole sequences, at which they
    answer alike, and, where the data says what is right, the accuracy of both and of the most common answer.

    Raises:
        UserError: a token is none of the program's.
    """
    known = set(found.token_ids)
    strange = next((each for row in asked.ids for each in row if each not in known), None)
    if strange is not None:
        raise UserError(f"The id {strange} occurs in none of the sequences that the program was found by.")
    answers = ask(model, placed(model, asked, offsets), found.token_ids, found.label_ids)
    same, whole = match(found.form, answers)
    right = torch.full_like(answers.given_BT, -2)  # no answer is right where the data gives another label
    places = torch.zeros_like(answers.real_BT)
    place = {id_: number for number, id_ in enumerate(found.label_ids)}
    for row, labels in enumerate(asked.labels):
        right[row, : len(labels)] = torch.tensor([-2 if each is None else place.get(each, -2) for each in labels])
        places[row, : len(labels)] = torch.tensor([each is not None for each in labels])
    figures = {"match": same, "whole_sequences": whole}
    if bool(places.any()):
        with torch.no_grad():
            ours = form_answers(found.form, answers)
        counts = torch.bincount(right[places & (right >= 0)], minlength=1)
        figures |= {
            "model_accuracy": float((answers.given_BT == right)[places].float().mean()),
            "program_accuracy": float((ours == right)[places].float().mean()),
            "most_common": float(counts.max() / places.sum()),
        }
    return figures
