"""Reads a run of the reference code (princeton-nlp/TransformerPrograms): `args.json` with `model.pt` or `model.npz`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmlab.errors import UserError, reads
from lmlab.files import read_mapping
from lmlab.methods.transformer_programs.network.model import Block, Mlps, ProgramTransformer
from lmlab.methods.transformer_programs.network.spec import NetworkSpec
from lmlab.methods.transformer_programs.tasks import rasp
from lmlab.models.formats.pickles import read_pickle

ARGUMENTS = "args.json"
_SIZES = ("n_layers", "n_heads_cat", "n_heads_num", "n_cat_mlps", "n_num_mlps", "d_mlp", "mlp_vars_in", "n_vars_cat")
_DATA = {
    "task": "dataset", "vocab_size": "vocab_size", "size": "dataset_size", "min_length": "min_length",
    "max_length": "max_length", "data_seed": "seed",
}  # fmt: skip
_MOST_DRAWN = 10_000_000  # of a run: more is no size that was trained on
_MOST = 10_000  # of anything; published models have 64 hidden units and 8 heads
_MASKED = (rasp.PAD, rasp.UNK)


def load_reference(
    directory: str | Path, vocabulary: Sequence[str] | None = None, labels: Sequence[str] | None = None
) -> ProgramTransformer:
    """The network of a reference run, as one seed.

    Arguments:
        vocabulary, labels: in the order of their numbers. The reference does not save them; those of a RASP task are
            found by drawing its data again.

    Raises:
        UserError: the run is of a variant without a program, or its weights do not fit its arguments.
    """
    directory = Path(directory)
    arguments = read_mapping(directory / ARGUMENTS)
    if arguments.get("standard"):
        raise UserError(f"'{directory}' is a standard Transformer, which has no program.")
    if arguments.get("attention_type", "cat") != "cat":
        raise UserError(
            f"'{directory}': attention_type {arguments['attention_type']!r} has real scores in place of predicates,"
            " which no program can tell."
        )
    weights = _weights(directory)
    if vocabulary is None or labels is None:
        drawn = _vocabularies(arguments, directory)
        vocabulary, labels = vocabulary or drawn[0], labels or drawn[1]
    return _network(directory, arguments, weights, tuple(vocabulary), tuple(labels))


@reads("a run of the reference")
def _network(
    directory: Path, arguments: dict[str, Any], weights: dict[str, Tensor], vocabulary: tuple[str, ...],
    labels: tuple[str, ...],
) -> ProgramTransformer:  # fmt: skip
    _check_sizes(directory, arguments, weights)
    context, d_var = weights["pos_embed.W"].shape
    one_hot = bool(arguments.get("one_hot_embed", False))
    spec = NetworkSpec(
        vocabulary=vocabulary,
        labels=labels,
        masked_labels=tuple(label for label in labels if label in _MASKED) if arguments.get("unembed_mask", 1) else (),
        d_var=d_var,
        context=context,
        num_layers=arguments["n_layers"],
        cat_heads=arguments["n_heads_cat"],
        num_heads=arguments["n_heads_num"],
        cat_mlps=arguments["n_cat_mlps"],
        num_mlps=arguments["n_num_mlps"],
        d_mlp=arguments["d_mlp"],
        mlp_vars_in=arguments.get("mlp_vars_in", 2),
        embedding_vars=0 if one_hot else arguments["n_vars_cat"],
        num_vars=arguments.get("n_vars_num", 1),
        learned_numbers=not arguments.get("count_only", True),
        selector_width=bool(arguments.get("selector_width", False)),
        sampled_tokens=one_hot,
        position_bias=arguments.get("rel_pos_bias", "fixed"),
        autoregressive=bool(arguments.get("autoregressive", False)),
        pool_outputs=bool(arguments.get("pool_outputs", False)),
        pool_over="context",
        lower=bool(arguments.get("do_lower", False)) and arguments.get("dataset") not in rasp.TASKS,
        replace_numbers=bool(arguments.get("replace_numbers", False)) and arguments.get("dataset") not in rasp.TASKS,
    )
    model = ProgramTransformer(spec)
    with torch.no_grad():
        for target, source in names(model).items():
            parts = [weights[each] for each in source]
            parameter = model.get_parameter(target)
            value = torch.cat(parts) if len(parts) > 1 else parts[0]
            if target.endswith("mlp.read") or ".w_" in target or ".b_" in target:
                value = torch.stack([each.T if ".w_" in target else each for each in parts])
            if target == "embedding":
                value = value.T.reshape(len(vocabulary), spec.embedding_vars, d_var)
            if value.shape != parameter.shape[1:]:
                raise UserError(
                    f"'{directory}': {', '.join(source)} has the shape {tuple(value.shape)}, but the arguments say"
                    f" {tuple(parameter.shape[1:])}."
                )
            parameter[0] = value
    return model


def _check_sizes(directory: Path, arguments: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Refuse sizes that the weights do not have before anything of such a size is made."""
    blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    for key in _SIZES:
        value = arguments.get(key, 0)
        if not isinstance(value, int | float) or not 0 <= value <= _MOST:
            raise UserError(
                f"'{directory}': {key} is {value!r:.60} in args.json; a whole number from 0 on is expected."
            )
    if arguments["n_layers"] != len(blocks):
        raise UserError(
            f"'{directory}': n_layers is {arguments['n_layers']}, but the weights have {len(blocks)} layers."
        )


def names(model: ProgramTransformer) -> dict[str, list[str]]:
    """The reference's names of the tensors that make each parameter."""
    found: dict[str, list[str]] = {"unembed": ["unembed.W_U"]}
    if model.spec.embedding_vars:
        found["embedding"] = ["embed.W_E"]
    if model.spec.learned_numbers:
        found["numbers"] = ["num_embed.W_E"]
    for number, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        theirs, ours = f"blocks.{number}", f"blocks.{number}"
        kinds = [kind for kind, count in (("cat", block.cat_heads), ("num", block.num_heads)) if count]
        if kinds:
            for name, part in (("key", "W_K"), ("query", "W_Q"), ("predicates.table", "W_pred")):
                found[f"{ours}.{name}"] = [f"{theirs}.{kind}_attn.{part}.W" for kind in kinds]
        if block.cat_heads:
            found[f"{ours}.value"] = [f"{theirs}.cat_attn.W_V.W"]
            if model.spec.position_bias == "clipped":
                found[f"{ours}.bias"] = [f"{theirs}.cat_attn.rel_pos_bias.bias"]
        if block.num_heads:
            found[f"{ours}.num_value"] = [f"{theirs}.num_attn.W_V.W"]
        for kind in ("cat", "num"):
            mlps = getattr(block, f"{kind}_mlp", None)
            if isinstance(mlps, Mlps):
                each = [f"{theirs}.{kind}_mlp.mlps.{mlp}" for mlp in range(mlps.count)]
                found[f"{ours}.{kind}_mlp.read"] = [f"{mlp}.W_read.W" for mlp in each]
                for part in ("w_in", "b_in", "w_out", "b_out"):
                    their_part = part.replace("w", "W")
                    found[f"{ours}.{kind}_mlp.{part}"] = [f"{mlp}.{their_part}" for mlp in each]
    return found


@reads("the weights of a reference run")
def _weights(directory: Path) -> dict[str, Tensor]:
    """Tensors only: nothing that a file holds is run."""
    if (directory / "model.npz").exists():
        with np.load(directory / "model.npz", allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    path = directory / "model.pt"
    if not path.exists():
        raise UserError(f"'{directory}' has neither model.pt nor model.npz.")
    loaded = read_pickle(path)
    if not isinstance(loaded, dict) or not all(isinstance(each, Tensor) for each in loaded.values()):
        raise UserError(f"'{path}' holds no state_dict: a name for each tensor.")
    return dict(loaded)


def drawn_by(directory: str | Path) -> dict[str, Any]:
    """Settings of the data that a run on a RASP task drew.

    Raises:
        UserError: it read other data.
    """
    return _data(read_mapping(Path(directory) / ARGUMENTS), Path(directory))


def _data(arguments: dict[str, Any], directory: Path) -> dict[str, Any]:
    if arguments.get("dataset") not in rasp.TASKS:
        raise UserError(
            f"'{directory}': the reference saves no vocabulary, and {arguments.get('dataset')!r:.60} is no task whose"
            " data can be drawn again.",
            "Import it with --vocabulary: the tokens and labels in the order of their numbers.",
        )
    found = {}
    for ours, theirs in _DATA.items():
        if theirs not in arguments:
            raise UserError(f"'{directory / ARGUMENTS}' does not say '{theirs}'.")
        found[ours] = arguments[theirs]
    for name, value in found.items():
        if name != "task" and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST_DRAWN):
            raise UserError(
                f"'{directory}': {_DATA[name]} is {value!r:.60} in {ARGUMENTS}; a whole number from 0 on is expected."
            )
    if not rasp.is_small(found["size"], found["vocab_size"], found["max_length"]):
        raise UserError(
            f"'{directory}': {ARGUMENTS} says that {found['size']:,} sequences of up to {found['max_length']:,} places"
            f" are drawn from {found['vocab_size']:,} words: too many."
        )
    return found


def _vocabularies(arguments: dict[str, Any], directory: Path) -> tuple[list[str], list[str]]:
    """Tokens and labels of a RASP task, from the training data that its arguments say."""
    data = _data(arguments, directory)
    seed, name = data.pop("data_seed"), data.pop("task")
    examples = rasp.generate(name, **data, seed=seed, unique=bool(arguments.get("unique", 1)))
    train, _, _ = rasp.split(examples, seed)
    return vocabulary_of(tokens for tokens, _ in train), vocabulary_of(labels for _, labels in train)


def vocabulary_of(rows: Any) -> list[str]:
    """`<pad>` and what else occurs, sorted."""
    return [rasp.PAD, *sorted({each for row in rows for each in row} - {rasp.PAD})]
