"""Counts of routed tokens from array files, in the form in which those of OLMoE were published.

An `.npz` file holds `layers` [L] and, for each model, `MODEL/domains` [D] (or `MODEL/models`), `MODEL/expert_counts`
[D, L, E], how many of the domain's tokens have the expert among their k, and `MODEL/expert_counts_top1`, among their
first. Without a model's name the keys stand alone.

Shapes: D domains, L layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.methods.olmoe.routing.statistics import load_summary

_COUNTS, _FIRST = "expert_counts", "expert_counts_top1"


@dataclass(frozen=True)
class RoutingCounts:
    """The counts of one model.

    Attributes:
        domains: names of what was counted apart.
        layers: numbers of the layers.
        top_k_DLE: tokens that have the expert among their k.
        first_DLE: tokens whose first expert it is; None where they were not counted.
    """

    domains: tuple[str, ...]
    layers: tuple[int, ...]
    top_k_DLE: NDArray[np.int64]
    first_DLE: NDArray[np.int64] | None

    def load(self) -> dict[str, NDArray[np.float64]]:
        """How evenly experts are used, each [D, L] (`load_summary`)."""
        return load_summary(self.top_k_DLE)

    def domain_specialization(self) -> NDArray[np.float64] | None:
        """Of the tokens of each domain the share that has the expert among its k, [D, L, E]; None where it is not known
        how many tokens there are.
        """
        if self.first_DLE is None:
            return None
        return self.top_k_DLE / np.maximum(self.first_DLE.sum(-1, keepdims=True), 1)


def read_counts(path: Path) -> dict[str, RoutingCounts]:
    """The counts of each model in a file; one without a name is called by the name of the file.

    Raises:
        UserError: it is missing, is no such file, or its arrays do not fit each other.
    """
    if not path.exists():
        raise UserError(f"There is no file '{path}'.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # damaged archives raise many kinds
        raise UserError(f"'{path}' is no file of arrays ({type(error).__name__}: {error}).") from None
    found = {name.removesuffix(_COUNTS): name for name in arrays if name.split("/")[-1] == _COUNTS}
    if not found:
        raise UserError(f"'{path}' holds no array {_COUNTS}, nor one MODEL/{_COUNTS}.")
    return {prefix.rstrip("/") or path.stem: _counts(path, arrays, prefix) for prefix in sorted(found)}


def _counts(path: Path, arrays: dict[str, NDArray[np.generic]], prefix: str) -> RoutingCounts:
    top_k, first = arrays[prefix + _COUNTS], arrays.get(prefix + _FIRST)
    for name, array in ((_COUNTS, top_k), (_FIRST, first)):
        if array is not None and (array.ndim != 3 or array.dtype.kind not in "iu" or (array.astype(float) < 0).any()):
            raise UserError(f"'{path}': {prefix}{name} is no array of counts [domains, layers, experts].")
        if array is not None and array.shape != top_k.shape:
            raise UserError(f"'{path}': {prefix}{name} has another shape than {prefix}{_COUNTS}.")
    names = arrays.get(f"{prefix}domains", arrays.get(f"{prefix}models"))
    layers = arrays.get(f"{prefix}layers", arrays.get("layers"))
    domains = [str(number) for number in range(top_k.shape[0])] if names is None else [str(each) for each in names]
    numbers = list(range(top_k.shape[1])) if layers is None else [int(each) for each in layers.astype(int)]
    if len(domains) != top_k.shape[0] or len(numbers) != top_k.shape[1]:
        raise UserError(
            f"'{path}': {prefix}{_COUNTS} is for {top_k.shape[0]} domains and {top_k.shape[1]} layers, but"
            f" {len(domains)} and {len(numbers)} are named."
        )
    return RoutingCounts(
        tuple(domains),
        tuple(numbers),
        top_k.astype(np.int64),
        None if first is None else first.astype(np.int64),
    )
