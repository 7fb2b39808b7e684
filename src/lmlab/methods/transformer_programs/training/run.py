"""A training as files: data, networks and their table in one directory, found again by later commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save

from lmlab.config import validate
from lmlab.errors import UserError, reads
from lmlab.files import atomic_file, read_mapping, write_json
from lmlab.methods.transformer_programs.config import TrainSettings
from lmlab.methods.transformer_programs.network.compile import from_program
from lmlab.methods.transformer_programs.network.model import ProgramTransformer
from lmlab.methods.transformer_programs.network.reference import ARGUMENTS, drawn_by, load_reference
from lmlab.methods.transformer_programs.network.spec import NetworkSpec
from lmlab.methods.transformer_programs.program.files import load_program
from lmlab.methods.transformer_programs.tasks.dataset import IGNORED, Dataset, Split, recode
from lmlab.methods.transformer_programs.tasks.load import load_data
from lmlab.methods.transformer_programs.tasks.vectors import starting_logits
from lmlab.methods.transformer_programs.training.fit import Fitted, fit, spec_of
from lmlab.runs import Artifact
from lmlab.train import load_weights

NETWORK, WEIGHTS, REJECTS = "network.json", "network.safetensors", "rejects.jsonl"
_NEAR_BEST = 0.01  # of accuracy: such seeds have found the same program or one as good
_NEAR_CHANCE = 0.1  # a seed this far above the most common answer, of what is left, has learned something


@dataclass(frozen=True)
class TrainedNetworks(Artifact):
    """A directory with trained networks: `network.json` and their weights, or a run of the reference."""

    called: ClassVar[str] = "the networks of a trained program"

    @classmethod
    def _at(cls, path: Path) -> TrainedNetworks | None:
        if (path / NETWORK).exists():
            return cls(path)
        return ReferenceRun(path) if (path / ARGUMENTS).exists() else None

    @classmethod
    def _remedy(cls) -> str:
        return "Name the directory that 'lmlab programs train' wrote, or a run of the reference."

    def record(self) -> dict[str, Any]:
        """What `network.json` says."""
        return read_mapping(self.path / NETWORK)

    @reads("the networks of a trained program")
    def load(self) -> ProgramTransformer:
        """All seeds."""
        return load_networks(self.path)

    def settings(self) -> TrainSettings:
        """What they were trained with."""
        return validate(TrainSettings, self.record()["settings"], f"'{self.path / NETWORK}'")

    def place_of(self, seed: int | None) -> int:
        """The place of a seed among the others; by default of the best.

        Raises:
            UserError: there is no such seed.
        """
        record = self.record()
        if seed is None:
            return int(record["best"])
        if seed not in record["seeds"]:
            raise UserError(f"'{self.path}' has no seed {seed}.", f"Its seeds: {', '.join(map(str, record['seeds']))}.")
        return int(record["seeds"].index(seed))


class ReferenceRun(TrainedNetworks):
    """A run of the reference code on a task: one seed, whose data are drawn again."""

    def record(self) -> dict[str, Any]:
        """As of a single seed."""
        settings = validate(TrainSettings, drawn_by(self.path), f"'{self.path / ARGUMENTS}'")
        return {"seeds": [0], "best": 0, "settings": settings.model_dump(mode="json")}

    def load(self) -> ProgramTransformer:
        """Its network."""
        return load_reference(self.path)


def load_networks(path: Path) -> ProgramTransformer:
    """The networks of a directory with `network.json`."""
    record = read_mapping(path / NETWORK)
    spec = validate(NetworkSpec, record["network"], f"'{path / NETWORK}'")
    model = ProgramTransformer(spec, record["seeds"])
    load_weights(model, load_file(path / WEIGHTS), f"'{path / WEIGHTS}'")
    return model


def train(
    settings: TrainSettings, directory: str | Path, shift: int = 0, data: Dataset | None = None
) -> dict[str, Any]:
    """Train what the settings say, from where an earlier attempt stopped; the results, also written to `network.json`.

    Arguments:
        shift: added to the first seed: the seed of a recipe.
        data: what the settings name, if it is read already.

    Raises:
        UserError: the data or the shape are wrong.
        Interrupted: stopped by a signal.
    """
    directory = Path(directory)
    data = data or load_data(settings, directory / REJECTS)
    first = settings.first_seed + shift
    seeds = range(first, first + settings.seeds)
    if settings.start is not None:
        start = from_program(load_program(settings.start), seeds)
        data = recode(data, start.spec)
        fitted = fit(start.spec, settings, data, directory, None, seeds, start)
    else:
        spec = spec_of(settings, data)
        logits = starting_logits(settings.init_embeddings, spec) if settings.init_embeddings else None
        fitted = fit(spec, settings, data, directory, logits, seeds)
    return store(fitted, settings, data, directory)


def store(fitted: Fitted, settings: TrainSettings, data: Dataset, directory: Path) -> dict[str, Any]:
    """Write `network.json`; the results."""
    model, rows = fitted.model, fitted.seeds
    best = rows[fitted.best]
    majority = _majority(data.valid)
    results: dict[str, Any] = {
        "best_seed": best["seed"],
        "majority": majority,
        "plateau": bool(best["valid_accuracy"] < majority + _NEAR_CHANCE * (1 - majority)),
        "near_best": sum(row["valid_accuracy"] >= best["valid_accuracy"] - _NEAR_BEST for row in rows),
        "soft_gap": best["soft_gap"],
        "seeds": rows,
        "curves": fitted.curves,
        "unseen_labels": {**data.valid.unseen, **(data.test.unseen if data.test else {})},
        "training": fitted.summary,
    }
    results |= {key: best[key] for key in best if key.endswith("accuracy")}
    (directory / NETWORK).unlink(missing_ok=True)  # an earlier one says nothing of these weights
    with atomic_file(directory / WEIGHTS) as file:
        file.write(save({name: each.cpu().contiguous() for name, each in model.state_dict().items()}))
    write_json(
        directory / NETWORK,
        {
            "network": model.spec.model_dump(mode="json"),
            "seeds": list(model.seeds),
            "best": fitted.best,
            "settings": settings.model_dump(mode="json"),
            "results": {key: results[key] for key in ("best_seed", "majority", "plateau", "seeds")},
        },
    )
    return results


def _majority(split: Split) -> float:
    """The share of places that the most common of the labels of training is right at."""
    known, labels = split.labels[split.labels > IGNORED], split.labels[split.labels != IGNORED]
    return float(torch.bincount(known).max() / labels.numel()) if known.numel() else 0.0


def sequences_of(data: Dataset) -> list[Sequence[str]]:
    """The token sequences of all splits."""
    parts = [data.train, data.valid, *([data.test] if data.test is not None else [])]
    return [tokens for part in parts for tokens, _ in part.examples]
