"""Taps: names for every intermediate of a forward pass, to read it or to put another in its place.

`embedding`, `blocks.{i}.X` and `final` are the names, where X is one of

- `input`, `middle`, `output`: the residual stream before attention, after it, and after the feed-forward network, [B,
  T, D]
- `attention.input`, `attention.output`, `ffn.input`, `ffn.output`: what each sub-layer reads and writes, [B, T, D]
- `attention.query` [B, N, T, H], `attention.key` and `attention.value` [B, K, T, H]: after QK-norm and rotation
- `attention.pattern`: attention probabilities, [B, N, T, S]
- `attention.heads`: what each head gathered, [B, T, N, H]
- `attention.head_outputs`: what each head writes, [B, T, N, D]
- `ffn.hidden`: inside the feed-forward network, after the activation (and the gate), [B, T, F]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

from torch import Tensor

from lmlab.errors import did_you_mean

_STREAM = ("input", "attention.input", "attention.output", "middle", "ffn.input", "ffn.output", "output")
_INSIDE = (
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.pattern",
    "attention.heads",
    "attention.head_outputs",
    "ffn.hidden",
)


def tap_names(num_layers: int) -> list[str]:
    """All names, in the order in which a model of so many layers passes them (those inside a sub-layer after the
    stream's).
    """
    inner = [f"blocks.{layer}.{name}" for layer in range(num_layers) for name in (*_STREAM, *_INSIDE)]
    return ["embedding", *inner, "final"]


class Taps:
    """Listeners on the intermediates of one or more forward passes.

    Arguments:
        listeners: a function for each name; names may hold the wildcards * and ?. It gets the tensor and returns None,
            or a tensor to put in its place. A tensor that is put in must have the same shape.

    Raises:
        ValueError: on the first forward pass, a name that matches nothing.
    """

    def __init__(self, listeners: Mapping[str, Callable[[Tensor], Tensor | None]]) -> None:
        self._listeners = dict(listeners)
        self._by_name: dict[str, list[Callable[[Tensor], Tensor | None]]] = {}

    def bind(self, num_layers: int) -> None:
        """Resolve the names for a model of so many layers."""
        known = tap_names(num_layers)
        self._by_name = {}
        for pattern, listener in self._listeners.items():
            matches = [name for name in known if fnmatchcase(name, pattern)]
            if not matches:
                raise ValueError(f"there is no intermediate '{pattern}'. {did_you_mean(pattern, known)}")
            for name in matches:
                self._by_name.setdefault(name, []).append(listener)

    def wants(self, name: str) -> bool:
        """Whether anyone listens to a name."""
        return name in self._by_name

    def __call__(self, name: str, x: Tensor) -> Tensor:
        """Show a tensor to its listeners; return it, or what they put in its place."""
        for listener in self._by_name.get(name, ()):
            replacement = listener(x)
            if replacement is not None:
                if replacement.shape != x.shape:
                    raise ValueError(
                        f"the tap '{name}' holds {list(x.shape)}; a listener returned {list(replacement.shape)}"
                    )
                x = replacement
        return x


class Recorder(Taps):
    """Taps that keep what they see: `model(ids, taps=(seen := Recorder("blocks.*.output")))`, then
    `seen["blocks.0.output"]`.
    """

    def __init__(self, *names: str) -> None:
        super().__init__({name: lambda x: None for name in names})
        self.values: dict[str, Tensor] = {}

    def __call__(self, name: str, x: Tensor) -> Tensor:
        """Keep the tensor under its name."""
        if self.wants(name):
            self.values[name] = x
        return x

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def names(self) -> Iterable[str]:
        """What was seen, in order."""
        return self.values.keys()
