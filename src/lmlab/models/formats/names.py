"""Where a checkpoint of a Hugging Face family keeps each of our parameters, and how to cut or lay together what it
stores.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmlab.errors import LmlabError
from lmlab.models.config import ModelConfig
from lmlab.models.formats.families.family import Family

Shape = tuple[int, ...]
_MIXED = "Export the model again in one layout."
# buffers that older versions of transformers wrote: what they hold follows from the configuration
_IGNORED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".position_ids")


@dataclass(frozen=True)
class Location:
    """Where one of our parameters is.

    Attributes:
        names: the tensor; for experts one of each, which we stack.
        part: first and last + 1 along the output of a tensor that holds several of ours.
        turn: in a tensor that holds the parts of one head after the other: which part of how many, and the number of
            heads.
        transposed: it is stored as [in, out].
        stacked: `names` are those of the experts, so many for each, laid end to end along the output; 0 where there are
            none.
    """

    names: tuple[str, ...]
    part: tuple[int, int] | None = None
    turn: tuple[int, int, int] | None = None
    transposed: bool = False
    stacked: int = 0

    def read(self, get: Callable[[str], Tensor]) -> Tensor:
        """Our parameter from their tensors."""
        tensors = [get(name) for name in self.names]
        if self.stacked:
            return torch.stack(
                [torch.cat(tensors[first : first + self.stacked]) for first in range(0, len(tensors), self.stacked)]
            )
        tensor = tensors[0].t() if self.transposed and tensors[0].dim() == 2 else tensors[0]
        return self.cut(tensor)

    def cut(self, tensor: Tensor) -> Tensor:
        """Our rows of a tensor whose first dimension is the output."""
        if self.turn is not None:
            index, count, heads = self.turn
            return tensor.unflatten(0, (heads, count, -1))[:, index].flatten(0, 1)
        return tensor if self.part is None else tensor[slice(*self.part)]


class Layout:
    """The tensors of one family's checkpoint of one model, by their names.

    Arguments:
        family: None for lmlab's own names.
        shapes: of our parameters, by our names.

    Attributes:
        family: of the names.
        locations: where each of our parameters is.
        shapes: of their tensors, in the order of our parameters.
        inert: further tensors of theirs that change nothing.
    """

    def __init__(self, config: ModelConfig, family: Family | None, shapes: Mapping[str, Shape]) -> None:
        self._prefix, self.family = "" if family is None else family.prefix, family
        self._rows = None if family is None else config.vocab_size
        shapes = {name: self._trimmed(name, shape) for name, shape in shapes.items()}
        self._own_shapes = shapes
        self.locations = {
            name: Location((name,)) if family is None else _locate(name, shapes, family, config) for name in shapes
        }
        own: dict[str, Shape] = {} if family is None else family.inert(config)
        # a model with another head, or whose head is its embedding, leaves these in the file
        self._heads = {self.head, self.head.removesuffix("weight") + "bias"} if config.head_bias else {self.head}
        self.inert = {self._prefix + name: shape for name, shape in own.items()}
        self._index()

    def _index(self) -> None:
        self.shapes: dict[str, Shape] = {}
        self._sources: dict[str, list[str]] = {}
        for name, location in self.locations.items():
            shape = self._own_shapes[name]
            if location.stacked:
                shape = (shape[1] // location.stacked, *shape[2:])
            if location.transposed:
                shape = shape[::-1]
            for stored in location.names:
                before, along = self.shapes.get(stored), len(shape) - 1 if location.transposed else 0
                if before is not None:
                    shape = (*shape[:along], before[along] + shape[along], *shape[along + 1 :])
                self.shapes[stored] = shape
                self._sources.setdefault(stored, []).append(name)

    def take_stacked(self, found: Iterable[str]) -> None:
        """Expect the matrices of all experts in one tensor where the checkpoint holds them so, and not one by one.

        Raises:
            LmlabError: it holds some matrices both ways.
        """
        if self.family is None or not self.family.stacked:
            return
        found = set(found)
        for name, location in self.locations.items():
            stacked = _fill(name, self.family.stacked)
            if location.stacked and stacked is not None and self._prefix + stacked in found:
                if both := [each for each in location.names if each in found]:
                    raise LmlabError(
                        f"The checkpoint holds experts both stacked and one by one: {self._prefix + stacked} and"
                        f" {both[0]}.",
                        _MIXED,
                    )
                self.locations[name] = Location((self._prefix + stacked,))
        self._index()

    def canonical(self, stored: str) -> str:
        """Their name of a tensor as a complete model would have it: some checkpoints hold the body alone, without its
        prefix, or with another; files that were made from TensorFlow's call the weights of norms gamma and beta.
        """
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            if stored.endswith(old):
                stored = stored.removesuffix(old) + new
        if stored in self.shapes or stored in self.inert:
            return stored
        for beginning, name in (self.family.renamed if self.family is not None else {}).items():
            if stored.startswith(beginning):
                return name + stored.removeprefix(beginning)
        parts = self._prefix.split(".")
        candidates = (".".join(parts[:count]) + "." + stored for count in range(1, len(parts)))
        return next((name for name in candidates if name in self.shapes or name in self.inert), stored)

    def problems(self, found: Mapping[str, Shape]) -> list[str]:
        """Every missing, unexpected and mis-shaped tensor of a checkpoint whose tensors have these (canonical) names
        and shapes.
        """
        unread = () if self.family is None else self.family.unread
        known = self.shapes | self.inert
        problems = [f"missing {name}" for name in self.shapes if name not in found]
        unexpected = [
            name
            for name in found
            if name not in known
            and not name.endswith(_IGNORED)
            and not name.startswith(unread)
            and name not in self._heads
        ]
        problems += [f"unexpected {name}" for name in unexpected]
        problems += [
            f"{name} has shape {list(shape)}, not {list(known[name])}"
            for name, shape in found.items()
            if name in known and tuple(shape) != known[name]
        ]
        return sorted(problems)

    def write(self, stored: str, parameters: Mapping[str, Tensor]) -> Tensor:
        """One of their tensors from our parameters."""
        if stored in self.inert:
            return torch.zeros(self.inert[stored], dtype=next(iter(parameters.values())).dtype)
        parts = []
        for name in self._sources[stored]:
            location, tensor = self.locations[name], parameters[name]
            if location.stacked:
                expert, part = divmod(location.names.index(stored), location.stacked)
                tensor = tensor[expert].chunk(location.stacked)[part]
            parts.append(tensor[: self._trimmed(name, tuple(tensor.shape))[0]])
        joined = self.join(stored, parts)
        return joined.t() if location.transposed and joined.dim() == 2 else joined

    def join(self, stored: str, parts: Sequence[Tensor]) -> Tensor:
        """One of their tensors from all its parts, the output first."""
        if len(parts) == 1:
            return parts[0]
        turn = self.locations[self._sources[stored][0]].turn
        if turn is None:
            return torch.cat(list(parts))
        return torch.stack([part.unflatten(0, (turn[2], -1)) for part in parts], 1).flatten(0, 2)

    def split(self, stored: str, tensor: Tensor) -> list[Tensor]:
        """The parts of one of their tensors, the output first, in the order of our parameters."""
        return [self.locations[name].cut(tensor) for name in self._sources[stored]]

    @property
    def head(self) -> str:
        """Their name of the matrix that gives logits."""
        return "head.weight" if self.family is None else f"{self.family.head}.weight"

    def module(self, ours: str) -> str:
        """Their name of the module that holds the weight of one of our modules."""
        return self.locations[f"{ours}.weight"].names[0].removesuffix(".weight")

    def stacked(self, ours: str) -> str:
        """Their name, within a model, of the parameter that stacks one of our experts' matrices."""
        table = {} if self.family is None else self.family.stacked or {}
        return self._prefix + (_fill(ours, table) or ours)

    def modules(self) -> list[str]:
        """Their names of all modules with a weight."""
        return [name.removesuffix(".weight") for name in self.shapes if name.endswith(".weight")]

    def rows(self, ours: str) -> int:
        """The outputs of one of our linear layers."""
        return self._own_shapes[f"{ours}.weight"][0]

    def in_and_out(self, stored: str) -> tuple[int, int]:
        """Inputs and outputs of one of their linear layers."""
        outputs, inputs = self.shapes[f"{stored}.weight"]
        return (
            (outputs, inputs) if self.locations[self._sources[f"{stored}.weight"][0]].transposed else (inputs, outputs)
        )

    def stored_of(self, ours: Iterable[str]) -> list[str]:
        """Their tensors that hold these parameters of ours."""
        return list(dict.fromkeys(stored for name in ours for stored in self.locations[name].names))

    def _trimmed(self, name: str, shape: Shape) -> Shape:
        """Rows that only pad the vocabulary stay out of other libraries' checkpoints."""
        return (
            (self._rows, *shape[1:])
            if self._rows is not None and name in ("embedding.weight", "head.weight", "head_bias")
            else shape
        )


def _module_name(ours: str, family: Family) -> str | None:
    """Their name, without the prefix, of one of our modules; None if the table has none, as for parts of fused ones."""
    return _fill(ours, family.names)


def _fill(ours: str, table: Mapping[str, str]) -> str | None:
    """The entry of a table for one of our names, with the number of the layer in its place."""
    number = re.search(r"\.(\d+)\.", ours)
    key = ours if number is None else ours.replace(number[0], ".{i}.", 1)
    target = table.get(key)
    return None if target is None else target.replace("{i}", "" if number is None else number[1])


def _locate(name: str, shapes: Mapping[str, Shape], family: Family, config: ModelConfig) -> Location:
    if name == "head_bias":
        return Location((f"{family.head}.bias",))
    if name in ("head.weight", "score.weight"):
        return Location((f"{family.head}.weight" if name == "head.weight" else name,))
    stem, _, kind = name.rpartition(".")
    transposed = kind == "weight" and stem.endswith(family.transposed)
    for fused, parts in family.fused.items():
        for part in parts:
            pattern = re.escape(part).replace(r"\{i\}", r"(\d+)")
            if match := re.fullmatch(pattern, stem):
                layer = match[1]
                before = [shapes[f"{other.format(i=layer)}.{kind}"][0] for other in parts[: parts.index(part)]]
                span = (sum(before), sum(before) + shapes[name][0])
                turn = (parts.index(part), len(parts), config.num_heads) if family.interleaved else None
                stored = f"{family.prefix}{fused.format(i=layer)}.{kind}"
                return Location((stored,), span, turn, transposed)
    module = _module_name(stem, family)
    if module is not None:
        return Location((f"{family.prefix}{module}.{kind}",), transposed=transposed)
    experts = family.experts[re.sub(r"\.\d+\.", ".{i}.", name, count=1)]
    layer = re.search(r"\.(\d+)\.", name)
    assert layer is not None
    names = (
        f"{family.prefix}{each.format(i=layer[1], e=expert)}.weight"
        for expert in range(shapes[name][0])
        for each in experts
    )
    return Location(tuple(names), stacked=len(experts))
