"""The files of a kind that was trained: its model's directory, and beside it `kind.json` and `kind.safetensors`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from lmlab.errors import LmlabError, UserError, reads
from lmlab.files import atomic_file, read_mapping, write_json
from lmlab.methods.autocompressor.compressor.files import SETTINGS as COMPRESSOR
from lmlab.methods.autocompressor.kinds.base import create, settings_of
from lmlab.methods.autocompressor.kinds.trained import Trained
from lmlab.models import Transformer, known_fingerprint, remove_lora, save_pretrained
from lmlab.models.formats.tensor_file import read_tensors
from lmlab.runs import Model

SETTINGS, WEIGHTS = "kind.json", "kind.safetensors"
_FORMAT = "lmlab kind of compression 1"


def own_weights(compressor: Trained) -> dict[str, Tensor]:
    """What a kind has beside the model."""
    return {name: each for name, each in compressor.state_dict().items() if not name.startswith("model.")}


def save_kind(
    compressor: Trained,
    directory: str | Path,
    *,
    companions: str | Path | None = None,
    tokens: dict[str, int] | None = None,
) -> None:
    """Write a directory that `load_kind` reads; adapters are folded into the model.

    Arguments:
        companions: a directory whose tokenizer is copied.
        tokens: the ids of marks, as for `save_pretrained`.
    """
    directory = Path(directory)
    if compressor.settings.train == "lora":
        remove_lora(compressor.model, merge=True)
        compressor.change(train="all")
    save_pretrained(compressor.model, directory, companions=companions, tokens=tokens)
    own = {name: each.detach().cpu().contiguous() for name, each in own_weights(compressor).items()}
    with atomic_file(directory / WEIGHTS) as file:
        file.write(save(own, {"format": _FORMAT}))
    told = {"format": _FORMAT, "kind": compressor.kind, "model": known_fingerprint(compressor.model)}
    write_json(directory / SETTINGS, told | {"settings": compressor.config.model_dump(mode="json")})


@reads("the directory of a kind of compression")
def learned_before(
    kind: str, settings: Mapping[str, Any], start: Model, model: Transformer
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings of a training that begins where a kind of that name was trained already, and what that kind has
    beside the model; the settings as they are, and nothing, where there is none.

    Arguments:
        model: that of `start`.

    Raises:
        UserError: another `vector_scale` is asked for than its model has learned to read, its model is another one, or
            `start` is a compressor of the method itself.
        LmlabError: a file is damaged.
    """
    place = start.source / SETTINGS if start.source.is_dir() else None
    if place is not None and (start.source / COMPRESSOR).exists() and kind in ("summary", "rmt"):
        raise UserError(
            f"'{start.path}' is a compressor already, whose summary tokens {kind} would draw anew.",
            "Train it further by compress_train, or begin from a plain model.",
        )
    if place is None or not place.exists():
        return dict(settings), {}
    about = _about(place)
    if about["kind"] != kind:
        return dict(settings), {}
    _require_own(about, model, start.source)
    asked = getattr(settings_of(kind, settings, learns=True), "vector_scale", None)
    if asked is not None:
        learned = about["settings"].get("vector_scale", 1.0)
        if "vector_scale" in settings and asked not in ("embedding", learned):
            raise UserError(
                f"vector_scale {asked!r}: the {kind} in '{start.path}' has {learned!r}.",
                "Set it to that, or leave it out.",
            )
        settings = {**settings, "vector_scale": learned}
    own, _ = read_tensors(start.source / WEIGHTS, "Copy it again.")
    return dict(settings), own


def go_on_from(compressor: Trained, own: Mapping[str, Tensor]) -> None:
    """Take what a kind has learned before. What asks for the text itself may be new, or not be asked any more.

    Raises:
        UserError: its weights have other shapes.
    """
    needed = {name: each for name, each in own_weights(compressor).items() if name in own or name != "again_D"}
    for name, each in needed.items():
        if name not in own or own[name].shape != each.shape:
            found = list(own[name].shape) if name in own else "missing"
            raise UserError(
                f"The {compressor.kind} that the training begins from has other weights: {name} is {found} there, and"
                f" {list(each.shape)} by these settings.",
                "Use the settings that it was trained with.",
            )
    _copy(own, needed)


def _about(place: Path) -> dict[str, Any]:
    about = read_mapping(place)
    if about.get("format") != _FORMAT:
        raise UserError(f"'{place}' is not the file of a kind of compression of lmlab.")
    return about


def _require_own(about: Mapping[str, Any], model: Transformer, directory: Path) -> None:
    if about["model"] != known_fingerprint(model):
        raise UserError(f"The model in '{directory}' is another one than its kind of compression was trained with.")


@torch.no_grad()
def _copy(own: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> None:
    for name, each in needed.items():
        each.copy_(own[name])


@reads("the directory of a kind of compression")
def load_kind(place: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Trained:
    """Read a kind that was trained, in evaluation mode.

    Raises:
        UserError: there is none, or its model is another one than it was trained with.
        LmlabError: a file is damaged.
    """
    found = Model.find(place)
    directory = found.source
    if not (directory / SETTINGS).exists():
        raise UserError(
            f"'{place}' holds no trained kind of compression ({SETTINGS} is missing).", "Train one: compress_fit"
        )
    about = _about(directory / SETTINGS)
    model = found.load(device, dtype)
    _require_own(about, model, directory)
    # losses are those of the training; nothing is copied or frozen for them now
    settings = about["settings"] | {"train": "all", "distill": 0.0}
    settings_of(about["kind"], settings, learns=True)
    compressor = create(about["kind"], model, **settings)
    assert isinstance(compressor, Trained)
    own, _ = read_tensors(directory / WEIGHTS, "Copy it again.")
    needed = own_weights(compressor)
    if {name: each.shape for name, each in own.items()} != {name: each.shape for name, each in needed.items()}:
        raise LmlabError(f"'{directory / WEIGHTS}' does not hold the weights of '{about['kind']}'.", "Copy it again.")
    _copy(own, needed)
    compressor.eval()
    return compressor
