"""Routing traces: which experts a router chose for each token of a corpus, from any model, stored and read back.

Shapes: S sequences, T tokens of a sequence, L layers, E experts, k experts for each token.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import LmlabError, UserError, reads
from lmlab.files import atomic_file, json_value

Ints = NDArray[np.integer[Any]]
_MOST_BYTES = 2**36  # 64 GiB: a few bytes of a packed file can claim any size


@dataclass(frozen=True)
class RoutingTrace:
    """Token ids and the experts chosen for them.

    Attributes:
        input_ids_ST: token ids.
        expert_ids_STLk: the chosen experts, the most probable first.
        num_experts: E.
        layers: numbers of the layers.
        domains, domain_S: names of domains, and each sequence's.
        predicted_ids_ST: the most probable next token of each place.
        about: model, step, corpus and whatever else was noted.
    """

    input_ids_ST: Ints
    expert_ids_STLk: Ints
    num_experts: int
    layers: tuple[int, ...]
    domains: tuple[str, ...] = ("text",)
    domain_S: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    predicted_ids_ST: Ints | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.domain_S):
            object.__setattr__(self, "domain_S", np.zeros(len(self.input_ids_ST), np.int64))
        shape = (*self.input_ids_ST.shape, len(self.layers))
        if self.expert_ids_STLk.shape[:3] != shape or self.domain_S.shape != shape[:1]:
            raise LmlabError(
                f"A trace of {shape[:2]} tokens and {shape[2]} layers cannot have experts of shape"
                f" {self.expert_ids_STLk.shape}."
            )
        if self.predicted_ids_ST is not None and self.predicted_ids_ST.shape != self.input_ids_ST.shape:
            raise LmlabError("A trace's predicted tokens must have the shape of its tokens.")
        if self.expert_ids_STLk.size and int(self.expert_ids_STLk.max()) >= self.num_experts:
            raise LmlabError(
                f"The trace names expert {int(self.expert_ids_STLk.max())}, but there are {self.num_experts}."
            )

    @property
    def top_k(self) -> int:
        """Experts for each token."""
        return int(self.expert_ids_STLk.shape[3])

    @property
    def token_hash(self) -> str:
        """SHA-256 of the token ids: traces that are compared must share it."""
        return hashlib.sha256(np.ascontiguousarray(self.input_ids_ST, np.int64).tobytes()).hexdigest()

    def layer_index(self, layer: int) -> int:
        """The place of a layer in the trace.

        Raises:
            UserError: the trace does not have it.
        """
        if layer not in self.layers:
            raise UserError(f"The trace has no layer {layer}, but {', '.join(map(str, self.layers))}.")
        return self.layers.index(layer)

    def save(self, path: str | Path) -> Path:
        """Write the trace as `.npz`, whole or not at all."""
        path = Path(path)
        arrays: dict[str, Any] = {
            "input_ids": self.input_ids_ST.astype(np.uint16 if self.input_ids_ST.max(initial=0) < 2**16 else np.uint32),
            "expert_ids": self.expert_ids_STLk.astype(np.uint8 if self.num_experts <= 256 else np.uint16),
            "domain": self.domain_S.astype(np.uint16),
            "domains": np.array(self.domains),
        }
        if self.predicted_ids_ST is not None:
            arrays["predicted_ids"] = self.predicted_ids_ST.astype(
                np.uint16 if self.predicted_ids_ST.max(initial=0) < 2**16 else np.uint32
            )
        header = {"num_experts": self.num_experts, "layers": self.layers, "token_hash": self.token_hash, **self.about}
        with atomic_file(path) as file:
            np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)
        return path

    @classmethod
    @reads("a routing trace")
    def load(cls, path: str | Path, step: str | None = None, num_experts: int | None = None) -> RoutingTrace:
        """Read a trace; no pickle is opened, and sizes are looked at before memory is taken.

        Arguments:
            step: for files that hold the experts of several checkpoints as `expert_ids_STEP`, which of them.
            num_experts: for files without a header; by default one more than the highest expert.

        Raises:
            UserError: the file does not exist, is no trace, or is damaged.
        """
        path = Path(path)
        if not path.exists():
            raise UserError(f"There is no file '{path}'.")
        try:
            _check_sizes(path)
            with np.load(path, allow_pickle=False) as stored:
                return cls._from_arrays(path, stored, step, num_experts)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(
                f"'{path}' is not a routing trace or is damaged ({error}).", "Collect it again with: lmlab olmoe trace"
            ) from None

    @classmethod
    def _from_arrays(cls, path: Path, stored: Any, step: str | None, num_experts: int | None) -> RoutingTrace:
        names = [name for name in stored.files if name.startswith("expert_ids")]
        name = f"expert_ids_{step}" if step else "expert_ids"
        if "input_ids" not in stored.files or name not in names:
            raise UserError(
                f"'{path}' has no array '{name}'; it has: {', '.join(stored.files)}.",
                "Name one of its checkpoints, such as step600.",
            )
        header = json_value(str(stored["header"])) if "header" in stored.files else {}
        experts = stored[name]
        known = ("num_experts", "layers", "token_hash")
        return cls(
            stored["input_ids"].astype(np.int64),
            experts,
            header.get("num_experts") or num_experts or int(experts.max()) + 1,
            tuple(header.get("layers") or range(experts.shape[2])),
            tuple(str(each) for each in stored["domains"]) if "domains" in stored.files else ("text",),
            stored["domain"].astype(np.int64) if "domain" in stored.files else np.zeros(len(experts), np.int64),
            stored["predicted_ids"].astype(np.int64) if "predicted_ids" in stored.files else None,
            {key: value for key, value in header.items() if key not in known} | ({"step": step} if step else {}),
        )

    @classmethod
    def from_reference_jsonl(
        cls, paths: Sequence[str | Path], num_experts: int, layers: Sequence[int] | None = None
    ) -> RoutingTrace:
        """Read traces of OLMoE's published form, one file a domain: each line has `input_ids [T]`, `predicted_token_ids
        [T]` and `exp_ids [T][k][L]`, in which the layer comes last.

        Raises:
            UserError: a line is not such a record; the file and the line are named.
        """
        ids: list[Any] = []
        predicted, experts, domains = [], [], []
        for number, path in enumerate(map(Path, paths)):
            for line_number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                try:
                    record = json_value(line)
                    chosen = np.asarray(record["exp_ids"], np.int64)
                    row = np.asarray(record["input_ids"], np.int64)
                    if chosen.ndim != 3 or len(chosen) != len(row) or (ids and len(row) != len(ids[0])):
                        raise ValueError(f"exp_ids of shape {chosen.shape} for {len(row)} tokens")
                    predicted.append(np.asarray(record["predicted_token_ids"], np.int64))
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(f"'{path}', line {line_number}: not a record of a trace ({error}).") from None
                ids.append(row)
                experts.append(chosen.transpose(0, 2, 1))
                domains.append(number)
        if not ids:
            raise UserError("The files hold no records.")
        stacked = np.stack(experts)
        names = tuple(Path(path).name.split(".")[0] for path in paths)
        return cls(
            np.stack(ids),
            stacked,
            num_experts,
            tuple(layers or range(stacked.shape[2])),
            names,
            np.array(domains),
            np.stack(predicted),
        )


def same_tokens(first: RoutingTrace, second: RoutingTrace) -> None:
    """Check that two traces are of the same tokens, layers and numbers of experts.

    Raises:
        UserError: they are not, so they cannot be compared.
    """
    if first.token_hash != second.token_hash:
        raise UserError(
            "The traces are of different tokens, so their experts cannot be compared.",
            "Trace both checkpoints on the same texts.",
        )
    if first.layers != second.layers or first.num_experts != second.num_experts:
        raise UserError(
            "The traces are of different layers or numbers of experts.",
            "Trace the same layers of checkpoints of one model.",
        )


def concatenate(traces: Iterable[RoutingTrace]) -> RoutingTrace:
    """Traces of one model on several texts as one: their domains are matched by name."""
    parts = list(traces)
    domains = tuple(dict.fromkeys(name for part in parts for name in part.domains))
    numbers = [np.array([domains.index(name) for name in part.domains])[part.domain_S] for part in parts]
    predicted = [part.predicted_ids_ST for part in parts]
    return RoutingTrace(
        np.concatenate([part.input_ids_ST for part in parts]),
        np.concatenate([part.expert_ids_STLk for part in parts]),
        parts[0].num_experts,
        parts[0].layers,
        domains,
        np.concatenate(numbers),
        None if any(each is None for each in predicted) else np.concatenate(cast(list[Ints], predicted)),
        parts[0].about,
    )


def _check_sizes(path: Path) -> None:
    """Look at the announced shapes of a `.npz` before anything is unpacked."""
    total = 0
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                major, _ = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
                total += int(np.prod([int(each) for each in shape], dtype=object)) * dtype.itemsize
    if total > _MOST_BYTES:
        raise ValueError(f"its arrays claim {total:,} bytes")
