"""Makes a program of averages short, as far as it goes on to answer as the model does: paths and neurons are left out,
tables become rules or rounded, and what is left is trained again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmlab.methods.transformer_programs.decompile.answers import Answers, match
from lmlab.methods.transformer_programs.decompile.form import (
    ONE,
    TOKEN,
    Form,
    Map,
    Neurons,
    innermost,
    variables_of,
)
from lmlab.methods.transformer_programs.decompile.paths import divergence
from lmlab.methods.transformer_programs.decompile.rules import candidates
from lmlab.models.layers.feed_forward import ACTIVATIONS

_MOST_RULES = 4  # in place of one table: more are no easier to read than the table
_FASTER = 10  # factors of rules, of which there are few, than the numbers of tables
_STRENGTHS = (1, 2, 4, 8, 16)
_ROUNDINGS = (1, 2, 4, 8, 16)  # steps from zero to a table's largest number


@dataclass
class Judge:
    """What a program has to keep.

    Attributes:
        answers: what it is compared on.
        batches: what it is trained on.
        least: the share of places at which it has to answer as the model does.
        heal: steps of training after a change that alone is too much.
    """

    answers: Answers
    batches: Callable[[int], Answers]
    least: float
    heal: int = 60
    rate: float = 0.02
    trained: int = 0

    def keeps(self, form: Form) -> bool:
        """Whether it answers often enough as the model does."""
        return match(form, self.answers)[0] >= self.least

    def train(self, form: Form, steps: int) -> None:
        """Train all tables and factors by the model's answers."""
        maps = [held[key] for held, key in form.maps]
        tables = [map_.table for map_ in maps if map_.table is not None and map_.table.requires_grad]
        weights = [map_.weights for map_ in maps if map_.table is None]
        rates = [(tables, self.rate), (weights, _FASTER * self.rate)]
        parameters = [*tables, *weights]
        if not parameters:
            return
        optimizer = torch.optim.Adam([{"params": each, "lr": rate} for each, rate in rates if each])
        highest = [group["lr"] for group in optimizer.param_groups]
        for step in range(steps):
            part = self.batches(self.trained + step)
            logits = form.run(part.tokens_BT, part.positions_BT)
            loss = divergence(logits, part.wanted_BTC, part.real_BT)
            for group, rate in zip(optimizer.param_groups, highest, strict=True):
                group["lr"] = rate * (1 - step / steps)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        self.trained += steps

    def healed(self, form: Form) -> bool:
        """Whether it does, if need be after a little training."""
        if self.keeps(form):
            return True
        self.train(form, self.heal)
        return self.keeps(form)


def _without(form: Form, number: int) -> Form:
    """A copy without one map."""
    found = deepcopy(form)
    held, key = found.maps[number]
    del held[key]
    return found.without_idle()


def _droppable(form: Form, last: bool) -> list[int]:
    """The maps that may go: all but the last of the answer and, before all is said by rules, what answers and neurons
    have whatever is read.
    """
    return [
        number
        for number, (held, key) in enumerate(form.maps)
        if not (held is form.answer and len(held) == 1) and (key != ONE or (last and held is form.answer))
    ]


def drop_paths(form: Form, judge: Judge, last: bool = False) -> Form:
    """Leave out paths, those first that change least, until each that is left is needed."""
    refused: set[Any] = set()
    while True:
        trials = []
        for number in _droppable(form, last):
            name = _name(form, number)
            if name in refused:
                continue
            trial = _without(form, number)
            trials.append((match(trial, judge.answers)[0], name, trial))
        if not trials:
            return form
        trials.sort(key=lambda each: -each[0])
        kept, name, trial = trials[0]
        if kept >= judge.least or judge.healed(trial):
            form = trial
        else:
            refused.add(name)


def _name(form: Form, number: int) -> Any:
    held, key = form.maps[number]
    return next((part.name for part in form.parts if part.maps is held), "answer"), key


def drop_neurons(form: Form, judge: Judge) -> Form:
    """Leave out neurons, half of them at once, then fewer, then one by one; those first that say least."""
    for part in [each for each in form.parts if isinstance(each, Neurons)]:
        share = 0.5
        while part.name in {each.name for each in form.parts} and form.sizes[part.name]:
            order = _weights(form, part.name).argsort().tolist()
            count = int(len(order) * share)
            if not count:
                form = _one_by_one(form, part.name, judge)
                break
            trial = _keep_neurons(form, part.name, sorted(order[count:]))
            if judge.healed(trial):
                form = trial
            else:
                share /= 2
    return form


def _one_by_one(form: Form, name: str, judge: Judge) -> Form:
    place = 0
    while name in {each.name for each in form.parts} and place < len(form.sizes[name]):
        order = _weights(form, name).argsort().tolist()
        trial = _keep_neurons(form, name, [each for each in range(len(order)) if each != order[place]])
        if judge.healed(trial):
            form = trial
        else:
            place += 1
    return form


def _weights(form: Form, name: str) -> Tensor:
    """How much each neuron says: the size of what reads it times that of what it reads."""
    part = next(each for each in form.parts if each.name == name)
    assert isinstance(part, Neurons)
    inner = torch.stack([map_.matrix().detach().abs().amax(0) for map_ in part.reads.values()]).amax(0)
    outer = torch.zeros_like(inner)
    for held, key in form.maps:
        matrix = held[key].matrix().detach().abs()
        for side, variable in enumerate(variables_of(key)):
            if innermost(variable) == name:
                outer = outer + matrix.amax(1 - side)
    return inner * outer


def _keep_neurons(form: Form, name: str, kept: Sequence[int]) -> Form:
    """A copy with some of the neurons of a layer."""
    found = deepcopy(form)
    found.sizes[name] = tuple(form.sizes[name][each] for each in kept)
    index = list(kept)
    for part in found.parts:
        if isinstance(part, Neurons) and part.name == name:
            part.reads = {
                key: Map(found.values(key), found.values(name), map_.matrix()[:, index])
                for key, map_ in part.reads.items()
            }
    for held, key in found.maps:
        for side, variable in enumerate(variables_of(key)):
            if innermost(variable) != name:
                continue
            if not kept:
                del held[key]
                break
            map_, left = held[key], found.values(variable)
            asks, answers = (left, map_.answers) if side == 0 else (map_.asks, left)
            held[key] = Map(asks, answers, map_.matrix().detach().index_select(side, torch.tensor(index)))
    return found.without_idle()


def fold_neurons(form: Form) -> Form:
    """Neurons that read the token alone are a table of it: what reads them reads the token."""
    for part in [each for each in form.parts if isinstance(each, Neurons)]:
        if set(part.reads) - {ONE, TOKEN}:
            continue
        with torch.no_grad():
            inner = sum(map_.matrix() for map_ in part.reads.values())
            assert isinstance(inner, Tensor)
            hidden_VF = ACTIVATIONS[form.activation](inner).expand(len(form.tokens), -1)
            for held, key in form.maps:
                names = variables_of(key)
                if not any(innermost(each) == part.name for each in names):
                    continue
                map_ = held.pop(key)
                matrix = map_.matrix()
                asks, answers = map_.asks, map_.answers
                if innermost(names[0]) == part.name:
                    matrix, asks = hidden_VF @ matrix, form.tokens
                if len(names) > 1 and innermost(names[1]) == part.name:
                    matrix, answers = matrix @ hidden_VF.T, form.tokens
                renamed = tuple(
                    each.replace(part.name, TOKEN) if innermost(each) == part.name else each for each in names
                )
                new = renamed if len(renamed) > 1 else renamed[0]
                if new in held:
                    matrix = matrix + held[new].matrix()
                held[new] = Map(asks, answers, matrix)
    return form.without_idle()


def ask_of_one(form: Form, judge: Judge) -> Form:
    """Products whose key counts the same whatever the query: the query becomes the number 1."""
    for owner, part in enumerate(form.parts):
        if isinstance(part, Neurons):
            continue
        for query, key in [each for each in part.products if each[0] != ONE]:
            trial = deepcopy(form)
            products = trial.parts[owner].products  # type: ignore[union-attr]
            column = products.pop((query, key)).matrix().detach().mean(0, keepdim=True)
            if (ONE, key) in products:
                column = column + products[ONE, key].matrix().detach()
            products[ONE, key] = Map((1,), form.values(key), column)
            if judge.healed(trial):
                form = trial
    return form


def say_rules(form: Form, judge: Judge) -> Form:
    """Tables become a few rules with a factor each where they can."""
    for number in range(len(form.maps)):
        held, key = form.maps[number]
        for replaced in _as_rules(held[key], _shifts(form, held), _usage(form, judge, held, key)):
            trial = _sharpened(form, number, replaced, judge)
            if judge.healed(trial):
                form = trial
                break
    return form


def _sharpened(form: Form, number: int, replaced: Map, judge: Judge) -> Form:
    """The program with rules in place of a table, at the best of several strengths: a table that was enough for a
    softmax to choose by says less than rules have to that stand for it.
    """
    trials = []
    for strength in _STRENGTHS if isinstance(form.maps[number][1], tuple) else (1,):
        trial = deepcopy(form)
        held, key = trial.maps[number]
        held[key] = Map(replaced.asks, replaced.answers, rules=replaced.rules, factors=strength * replaced.factors)
        trials.append((match(trial, judge.answers)[0], trial))
        if trials[-1][0] >= judge.least:
            break
    return max(trials, key=lambda each: each[0])[1]


def round_tables(form: Form, judge: Judge) -> Form:
    """The tables that are left in as few steps as they need; a rounded one is trained no more."""
    for number in range(len(form.maps)):
        held, key = form.maps[number]
        if held[key].table is None:
            continue
        table = held[key].matrix().detach()
        largest = float(table.abs().max())
        for steps in _ROUNDINGS:
            unit = float(f"{largest / steps:.2g}")
            if not unit:
                break
            trial = deepcopy(form)
            there, key_ = trial.maps[number]
            there[key_] = Map(held[key].asks, held[key].answers, (table / unit).round() * unit)
            for parameter in there[key_].parameters():
                parameter.requires_grad_(False)
            if judge.healed(trial):
                form = trial
                break
    return form


def _shifts(form: Form, held: Any) -> bool:
    """Whether what is added to a whole row of a map changes nothing: softmax does not see it."""
    return not any(isinstance(part, Neurons) and part.reads is held for part in form.parts)


def _as_rules(map_: Map, shifts: bool, usage: tuple[Tensor, Tensor]) -> Iterator[Map]:
    """The best single rule for a table, then two, and so on, by least squares over the pairs that occur.

    Arguments:
        shifts: what is added to a whole row changes nothing.
        usage: how often each value of both sides occurs.
    """
    table = map_.matrix().detach()
    rules = list(candidates(map_.asks, map_.answers)) if table.numel() > 1 else []
    rows, columns = (each / each.sum().clamp(min=1e-9) for each in usage)
    root = (rows[:, None] * columns).sqrt()

    def weighed(each: Tensor) -> Tensor:
        return ((each - (each * columns).sum(-1, keepdim=True) if shifts else each) * root).flatten()

    target = weighed(table)
    basis = torch.stack([weighed(rule.matrix(map_.asks, map_.answers)) for rule in rules], 1) if rules else root[:0]
    norms = basis.norm(dim=0).clamp(min=1e-6) if rules else root
    chosen: list[int] = []
    rest = target
    for _ in range(min(_MOST_RULES, len(rules))):
        gains = (basis.T @ rest).abs() / norms
        gains[chosen] = 0
        best = int(gains.argmax())
        if float(gains[best]) < 1e-6:
            return
        chosen.append(best)
        factors = torch.linalg.lstsq(basis[:, chosen], target[:, None]).solution[:, 0]
        rest = target - basis[:, chosen] @ factors
        yield Map(map_.asks, map_.answers, rules=[rules[each] for each in chosen], factors=factors)


@torch.no_grad()
def _usage(form: Form, judge: Judge, held: Any, key: Any) -> tuple[Tensor, Tensor]:
    """How often the values of both sides of a map occur: of keys everywhere, of queries, and of what an answer reads,
    as much where answers are compared as everywhere.
    """
    part = judge.answers
    seen = form.variables(part.tokens_BT, part.positions_BT)

    def often(variable: str, compared: bool) -> Tensor:
        found = seen[variable].abs()
        whole = found.mean((0, 1))
        return whole + found[part.real_BT].mean(0) if compared else whole

    if isinstance(key, tuple):
        return often(key[0], True), often(key[1], False)
    return often(key, True), torch.ones(len(held[key].answers))


def round_factors(form: Form, judge: Judge) -> Form:
    """Factors of rules to two digits, or to as many as are needed."""
    for digits in (2, 3, 5):
        trial = deepcopy(form)
        for held, key in trial.maps:
            if held[key].table is None:
                with torch.no_grad():
                    rounded = [float(f"{each:.{digits}g}") for each in held[key].factors.tolist()]
                    held[key].weights.copy_(torch.tensor(rounded) * held[key].spread)
        if judge.keeps(trial):
            return trial
    return form


def simplify(form: Form, judge: Judge, steps: int) -> Form:
    """All of it."""
    judge.train(form, steps)
    form = drop_neurons(fold_neurons(form), judge)
    form = drop_paths(form, judge)
    form = fold_neurons(drop_neurons(form, judge))
    judge.train(form, steps // 2)
    form = round_tables(say_rules(ask_of_one(form, judge), judge), judge)
    return round_factors(drop_paths(form, judge, last=True), judge)
