"""A program of averages: what a language model without norms is, written from its tokens and positions on.

Variables stand at each place: `token` and `position` are one-hot; `a0(token)` is what head a0 averages over the places
that it attends to, so a share of each token; `m0` are the neurons of a feed-forward network; `one` is the number 1. A
head's scores, a neuron's input and the answer's scores are sums over variables, each through a map: a table, or a few
rules with a factor each.

Shapes: B sequences, T places, n values of a variable, F neurons, C answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmlab.errors import UserError
from lmlab.methods.transformer_programs.decompile.rules import Rule, Value
from lmlab.models.layers.feed_forward import ACTIVATIONS

FORMAT = "lmlab-averaging-program/1"
ONE, TOKEN, POSITION = "one", "token", "position"


class Map(nn.Module):
    """From the values of one variable to those of another: a table, or rules with factors.

    Arguments:
        table: [n, n'].
        rules: in place of a table.
        factors: of the rules.
    """

    basis: Tensor
    spread: Tensor

    def __init__(
        self,
        asks: Sequence[Value],
        answers: Sequence[Value],
        table: Tensor | None = None,
        rules: Sequence[Rule] = (),
        factors: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.asks, self.answers, self.rules = tuple(asks), tuple(answers), tuple(rules)
        self.table = None if table is None else nn.Parameter(table.detach().clone())
        if table is None:
            assert factors is not None
            shape = (len(self.asks), len(self.answers))
            found = [rule.matrix(self.asks, self.answers) for rule in self.rules]
            basis = torch.stack(found) if found else torch.zeros(0, *shape)
            spread = (basis - basis.mean((1, 2), keepdim=True)).square().mean((1, 2)).sqrt().clamp(min=1e-3)
            self.register_buffer("basis", basis)
            self.register_buffer("spread", spread)
            # a step of training shall change a score by as much whatever the rule: factors are learned times spreads
            self.weights = nn.Parameter(factors.detach().float() * spread)

    @property
    def factors(self) -> Tensor:
        """The factor of each rule."""
        return self.weights / self.spread

    def matrix(self) -> Tensor:
        """[n, n']."""
        return torch.einsum("r,rij->ij", self.factors, self.basis) if self.table is None else self.table

    def record(self) -> dict[str, Any]:
        """As JSON: tables row by row."""
        if self.table is not None:
            return {"table": self.table.tolist()}
        return {
            "rules": [{**rule.record(), "factor": f} for rule, f in zip(self.rules, self.factors.tolist(), strict=True)]
        }


@dataclass
class Head:
    """An attention head; products by query and key.

    Attributes:
        layer: of the model.
    """

    name: str
    layer: int
    products: dict[tuple[str, str], Map] = field(default_factory=dict)

    @property
    def maps(self) -> dict[Any, Map]:
        """By what they read."""
        return self.products


@dataclass
class Neurons:
    """Neurons of a layer, by what they read."""

    name: str
    layer: int
    reads: dict[str, Map] = field(default_factory=dict)

    @property
    def maps(self) -> dict[Any, Map]:
        """By what they read."""
        return self.reads


def inside(variable: str) -> tuple[str, str] | None:
    """The head and the variable that it averages; None of a variable that is no average."""
    if not variable.endswith(")"):
        return None
    head, _, rest = variable.partition("(")
    return head, rest[:-1]


def within(variable: str) -> list[str]:
    """A variable and what it is averaged from, the innermost last."""
    found = [variable]
    while (pair := inside(found[-1])) is not None:
        found.append(pair[1])
    return found


def innermost(variable: str) -> str:
    """What a variable is averaged from, by however many heads."""
    return within(variable)[-1]


def variables_of(key: str | tuple[str, str]) -> tuple[str, ...]:
    """What a map reads: a variable, or those of the query and of the key."""
    return key if isinstance(key, tuple) else (key,)


@dataclass
class Form:
    """The program.

    Attributes:
        tokens: the vocabulary.
        places: positions that it knows; 0 if it reads none.
        labels: the answers.
        parts: heads and neurons, in the order in which they run.
        answer: what the answer reads.
        activation: of the neurons.
        sizes: of each layer's neurons, which are left, by their number in the model.
    """

    tokens: tuple[str, ...]
    places: int
    labels: tuple[str, ...]
    parts: list[Head | Neurons]
    answer: dict[str, Map]
    activation: str
    sizes: dict[str, tuple[int, ...]]

    def values(self, variable: str) -> tuple[Value, ...]:
        """The values of a variable."""
        variable = innermost(variable)
        if variable == ONE:
            return (1,)
        if variable == TOKEN:
            return self.tokens
        if variable == POSITION:
            return tuple(range(self.places))
        return tuple(f"{variable}.{each}" for each in self.sizes[variable])

    @property
    def maps(self) -> list[tuple[dict[Any, Map], Any]]:
        """All maps, each as the mapping that holds it and its key there."""
        held: list[dict[Any, Map]] = [*(part.maps for part in self.parts), self.answer]
        return [(each, key) for each in held for key in each]

    def parameters(self) -> list[nn.Parameter]:
        """What can be trained."""
        return [parameter for held, key in self.maps for parameter in held[key].parameters()]

    def used(self) -> set[str]:
        """The variables that are read, and those within them."""
        found = set(self.answer)
        for part in reversed(self.parts):
            if any(part.name in _names(variable) for variable in found):
                found |= {variable for key in part.maps for variable in variables_of(key)}
        return {each for variable in found for each in within(variable)}

    def without_idle(self) -> Form:
        """The program without parts that nothing reads."""
        names = {name for variable in self.used() for name in _names(variable)}
        self.parts = [part for part in self.parts if part.name in names]
        return self

    def run(self, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """The scores of the answers, [B, T, C]; each place sees itself and those before it.

        Raises:
            UserError: there are more places than it knows.
        """
        seen = self.variables(tokens_BT, positions_BT)
        return _sum(self.answer, seen)

    def variables(self, tokens_BT: Tensor, positions_BT: Tensor) -> dict[str, Tensor]:
        """All variables, [B, T, n] each."""
        wanted = self.used()
        seen = {
            ONE: torch.ones(*tokens_BT.shape, 1),
            TOKEN: F.one_hot(tokens_BT, len(self.tokens)).float(),
        }
        if POSITION in wanted:
            if int(positions_BT.max()) >= self.places:
                raise UserError(f"{int(positions_BT.max()) + 1} places; the program knows {self.places}.")
            seen[POSITION] = F.one_hot(positions_BT, self.places).float()
        length = tokens_BT.shape[1]
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        for part in self.parts:
            if isinstance(part, Neurons):
                seen[part.name] = ACTIVATIONS[self.activation](_sum(part.reads, seen))
                continue
            scores_BTS = torch.zeros(len(tokens_BT), length, length)
            for (query, key), map_ in part.products.items():
                scores_BTS = scores_BTS + (seen[query] @ map_.matrix()) @ seen[key].transpose(1, 2)
            weights_BTS = scores_BTS.masked_fill(later, float("-inf")).softmax(-1)
            for variable in sorted(wanted, key=len):
                pair = inside(variable)
                if pair is not None and pair[0] == part.name:
                    seen[variable] = weights_BTS @ seen[pair[1]]
        return seen

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "format": FORMAT,
            "tokens": list(self.tokens),
            "places": self.places,
            "labels": list(self.labels),
            "activation": self.activation,
            "neurons": {name: list(numbers) for name, numbers in self.sizes.items()},
            "parts": [_part_record(part) for part in self.parts],
            "answer": [{"variable": name, **map_.record()} for name, map_ in self.answer.items()],
        }


def _part_record(part: Head | Neurons) -> dict[str, Any]:
    if isinstance(part, Head):
        products = [{"query": q, "key": k, **map_.record()} for (q, k), map_ in part.products.items()]
        return {"head": part.name, "layer": part.layer, "scores": products}
    return {
        "neurons": part.name,
        "layer": part.layer,
        "reads": [{"variable": name, **map_.record()} for name, map_ in part.reads.items()],
    }


def _names(variable: str) -> set[str]:
    """The heads that a variable is averaged by, and what it is averaged from."""
    return {pair[0] for each in within(variable) if (pair := inside(each)) is not None} | {innermost(variable)}


def _sum(reads: Mapping[str, Map], seen: Mapping[str, Tensor]) -> Tensor:
    total: Tensor | None = None
    for name, map_ in reads.items():
        part = seen[name] @ map_.matrix()
        total = part if total is None else total + part
    assert total is not None
    return total
