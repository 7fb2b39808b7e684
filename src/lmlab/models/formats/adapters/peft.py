"""Adapters in the directories of the `peft` library: `adapter_config.json` beside `adapter_model.safetensors`.

A model of a Hugging Face family has its adapters under that family's names, so that either library reads what the other
one wrote. Where a family stores several of our projections as one matrix (GPT-2's `c_attn`), one adapter there is one
for each of them here, with a common A. On the way back adapters that still have a common A are written as one; others
are laid together, A over A and B along a diagonal, and a note in the file's header keeps their ranks.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lmlab.errors import LmlabError, UserError, reads
from lmlab.files import json_value, write_json
from lmlab.models.formats.adapters.beside import (
    expected_shapes,
    read_beside,
    short_targets,
    wanted_beside,
    write_beside,
)
from lmlab.models.formats.adapters.fold import canonical, fold, is_folded, tensors_of
from lmlab.models.formats.adapters.settings import CONFIG, read_adapter_settings
from lmlab.models.formats.names import Layout, Shape
from lmlab.models.formats.pickles import read_pickle
from lmlab.models.formats.settings import family_of
from lmlab.models.lora.adapt import STACKED, adaptable, adapters, attach, freeze, thin_pairs, trained_fully, untie
from lmlab.models.lora.layers import LoRALinear, QuantizedLoRALinear
from lmlab.models.lora.quantized import QuantizedLinear
from lmlab.models.moe.experts import Experts
from lmlab.models.transformer import Transformer

_PREFIX = "base_model.model."
_WEIGHTS, _PICKLE = "adapter_model.safetensors", "adapter_model.bin"
_RANKS = "lmlab_ranks"


def save_lora(model: Transformer, directory: Path | str, *, base: str | None = None) -> None:
    """Write the adapters of a model, and the modules that are trained beside them.

    Arguments:
        base: where the base model is, for those who read the directory.

    Raises:
        UserError: the model has no adapters.
    """
    directory = Path(directory)
    if not adapters(model):
        raise UserError("The model has no adapters to save.")
    found = {name: each for name, each in adapters(model).items() if isinstance(each, LoRALinear)}
    layout = _layout(model)
    pairs = thin_pairs(model)
    groups = _groups(layout, list(found))
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    parts: dict[str, list[int]] = {}
    for stored, members in groups.items():
        a, b, scale, parts[stored] = _lay_together(layout, stored, members, found)
        tensors |= {f"{_PREFIX}{stored}.lora_A.weight": a, f"{_PREFIX}{stored}.lora_B.weight": b}
        ranks[stored], alphas[stored] = len(a), scale * len(a)
    beside, more = write_beside(model, layout)
    tensors |= {_PREFIX + name: tensor for name, tensor in more.items()}
    for place in beside:
        ranks[place.key], alphas[place.key] = pairs[place.ours].rank, pairs[place.ours].scale * pairs[place.ours].rank
    of_experts = short_targets(beside, [layout.stacked(name) for name in _stacks(model)])
    trained, parameters = trained_fully(model), {name: each.detach() for name, each in model.named_parameters()}
    full = layout.stored_of(trained)
    tensors |= {_PREFIX + stored: layout.write(stored, parameters) for stored in full}
    if model.head is None and model.score is None and "embedding.weight" in trained:
        # peft wraps the table alone: to move the head with it, both are named and stored
        tensors[_PREFIX + layout.head] = layout.write(layout.stored_of(["embedding.weight"])[0], parameters).clone()
        full.append(layout.head)
    if model.head_bias is not None and layout.head in full:  # a module that peft takes over, it takes over whole
        bias = layout.stored_of(["head_bias"])[0]
        tensors[_PREFIX + bias] = layout.write(bias, parameters).clone()
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    scalar = model.config.num_labels is not None
    settings = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if scalar else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": _shortest(alpha),
        "rank_pattern": {re.escape(name): value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {re.escape(name): _shortest(value) for name, value in alphas.items() if value != alpha},
        # peft has no dropout beside stacked parameters, and refuses to read one
        "lora_dropout": 0.0 if of_experts else max(each.dropout for each in pairs.values()),
        "target_modules": _target_modules(
            set(groups) | {place.key for place in beside if not place.of_experts}, layout.modules()
        ),
        "target_parameters": of_experts or None,
        "modules_to_save": sorted({stored.rpartition(".")[0] for stored in full}) or None,
        "fan_in_fan_out": any(layout.locations[f"{name}.weight"].transposed for name in found),
        "bias": "none",
        "use_rslora": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    directory.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt"} | ({_RANKS: json.dumps(parts)} if any(len(each) > 1 for each in parts.values()) else {})
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        directory / _WEIGHTS,
        metadata=metadata,
    )
    write_json(directory / CONFIG, settings)


@reads("a directory of adapters that fit")
def load_lora(
    model: Transformer, directory: Path | str, *, trainable: bool = False, allow_pickle: bool = False
) -> list[str]:
    """Put the adapters of a directory beside the layers of a model, and its fully trained modules in the place of the
    model's. DoRA's and those with biases are folded into the weights at once, and leave no adapters.

    Arguments:
        model: the base model, without adapters.
        trainable: train them further: everything else is frozen. Otherwise nothing is trainable.
        allow_pickle: also read `adapter_model.bin`, with `weights_only`.

    Returns:
        the names of the adapted layers.

    Raises:
        UserError: a file is missing, the weights are a pickle, or the adapters are of a kind that lmlab does not have.
        LmlabError: tensors that are missing, unexpected or mis-shaped, all named at once; or a damaged file. The model
            is unchanged then.
    """
    directory = Path(directory)
    if adapters(model):
        raise UserError("The model has adapters already.", "Fold them in or drop them with remove_lora first.")
    settings = read_adapter_settings(directory)
    folded = is_folded(settings)
    if folded and trainable:
        raise UserError(f"'{directory}': adapters of DoRA or with biases are folded in, and not trained further.")
    layout = _layout(model)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    groups = _groups(layout, adaptable(model))
    table = layout.stored_of(["embedding.weight"])[0]
    tied = model.head is None and model.score is None
    targets = [stored for stored in layout.modules() if _is_target(stored, settings, groups)]
    beside = wanted_beside(
        model, layout, lambda stored: _is_target(stored, settings, groups), settings.get("target_parameters") or []
    )
    targets = [stored for stored in targets if stored not in {place.key for place in beside}]
    if settings.get("use_dora") and beside:
        raise UserError(f"'{directory / CONFIG}': lmlab has no DoRA on {', '.join(place.key for place in beside)}.")
    if unsupported := [stored for stored in targets if stored not in groups]:
        raise UserError(f"'{directory / CONFIG}': lmlab has no adapters on {', '.join(unsupported)}.")
    saves = settings.get("modules_to_save") or []
    # as in peft, any end of a name, also within a word
    saved = [name for name in layout.shapes if name.rpartition(".")[0].endswith(tuple(saves))]
    with ExitStack() as stack:
        shapes, get, metadata = _open(directory, stack, allow_pickle)
        names = {_canonical(name, layout): name for name in shapes}
        parts = tied and _parts_table_and_head(names, get, table, layout.head)
        if tied and layout.head in names:
            saved.append(layout.head)
        if settings.get("bias") not in (None, "none"):
            saved += [name for name in names if name.endswith(".bias") and name in layout.shapes and name not in saved]
        ranks = {stored: _pattern(settings, "rank_pattern", stored, int(settings.get("r", 8))) for stored in targets}
        sizes = {
            place.key: _pattern(settings, "rank_pattern", place.key, int(settings.get("r", 8))) for place in beside
        }
        expected = {
            name: shape
            for place in beside
            for name, shape in expected_shapes(model, layout, place, sizes[place.key]).items()
        }
        for stored in targets:
            expected |= tensors_of(layout, stored, settings)
        # peft may store an adapted table itself as well
        copies = {f"{place.key}.base_layer.weight": place.key for place in beside if not place.of_experts}
        problems = _problems(
            {name: shapes[original] for name, original in names.items() if name not in copies},
            layout,
            targets,
            saved,
            ranks,
            expected,
        )
        problems += [
            f"{name} differs from the model's"
            for name, key in copies.items()
            if name in names and not torch.equal(get(names[name]), layout.write(f"{key}.weight", parameters))
        ]
        if problems:
            raise LmlabError(f"'{directory}' does not fit the model: " + "; ".join(problems) + ".")
        tensors = {name: get(original) for name, original in names.items()}
    notes = json_value(metadata.get(_RANKS, "{}"))
    for stored in targets:
        rank, alpha = ranks[stored], float(_pattern(settings, "alpha_pattern", stored, settings.get("lora_alpha", 8)))
        scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
        if folded:
            fold(model, layout, stored, scale, tensors, bool(settings.get("use_dora")))
            continue
        a, b = tensors[f"{stored}.lora_A.weight"], tensors[f"{stored}.lora_B.weight"]
        pieces = _take_apart(a, layout.split(f"{stored}.weight", b), notes.get(stored))
        for name, piece in zip(groups[stored], pieces, strict=True):
            if piece is not None:
                adapter = attach(model, name, len(piece[0]), scale, float(settings.get("lora_dropout") or 0.0))
                with torch.no_grad():
                    adapter.lora_a.copy_(piece[0])
                    adapter.lora_b.copy_(piece[1])
    for place in beside:
        alpha = float(_pattern(settings, "alpha_pattern", place.key, settings.get("lora_alpha", 8)))
        read_beside(model, place, settings, sizes[place.key], alpha, tensors)
    if parts:
        untie(model)
        layout = _layout(model)
    ours = [name for name, location in layout.locations.items() if set(location.names) <= set(saved)]
    with torch.no_grad():
        for name in ours:
            model.get_parameter(name).copy_(layout.locations[name].read(tensors.__getitem__))
    freeze(model, sorted({name.rpartition(".")[0] for name in ours}))
    if not trainable:
        model.requires_grad_(False)
    return [name for stored in targets for name in groups[stored]] if folded else list(thin_pairs(model))


def _stacks(model: Transformer) -> list[str]:
    """Our names of all stacked matrices of experts."""
    found = [name for name, module in model.named_modules() if isinstance(module, Experts)]
    return [f"{name}.{matrix}" for name in found for matrix in STACKED]


def _layout(model: Transformer) -> Layout:
    shapes = {
        name: tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if not name.endswith((".lora_a", ".lora_b", ".packed", ".scales"))
    }
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedLoRALinear):
            shapes[f"{name}.weight"] = (module.out_features, module.in_features)
    return Layout(model.config, family_of(model.config, model.read_as), shapes)


def _groups(layout: Layout, names: list[str]) -> dict[str, list[str]]:
    """Their module -> ours that it holds, of all modules that hold one of `names`."""
    wanted = {layout.module(name) for name in names}
    groups: dict[str, list[str]] = {}
    for name in layout.locations:
        stem, _, kind = name.rpartition(".")
        if kind == "weight" and layout.module(stem) in wanted:
            groups.setdefault(layout.module(stem), []).append(stem)
    return groups


def _lay_together(
    layout: Layout, stored: str, names: list[str], found: Mapping[str, LoRALinear]
) -> tuple[Tensor, Tensor, float, list[int]]:
    """A, B and scale of one adapter that does what those of its parts do, of which some may have none, and the rank of
    each part; no ranks if A is common.
    """
    members = [found.get(name) for name in names]
    present = [each for each in members if each is not None]
    scale, first = present[0].scale, present[0].lora_a.detach()
    bs = [None if each is None else each.lora_b.detach() * (each.scale / scale) for each in members]
    whole = [b for b in bs if b is not None]
    common = all(each.lora_a.shape == first.shape and torch.equal(each.lora_a, first) for each in present)
    if common and len(present) == len(members):
        return first, layout.join(f"{stored}.weight", whole), scale, []
    ranks = [0 if each is None else each.rank for each in members]
    blocks, column = [], 0
    for name, b, rank in zip(names, bs, ranks, strict=True):
        block = first.new_zeros(layout.rows(name), sum(ranks))
        if b is not None:
            block[:, column : column + rank] = b
        blocks.append(block)
        column += rank
    a = torch.cat([each.lora_a.detach() for each in present])
    return a, layout.join(f"{stored}.weight", blocks), scale, ranks


def _take_apart(a: Tensor, bs: list[Tensor], ranks: list[int] | None) -> list[tuple[Tensor, Tensor] | None]:
    """A and B of each part, None for a part that had no adapter."""
    if not ranks:
        return [(a, b) for b in bs]
    pieces: list[tuple[Tensor, Tensor] | None] = []
    column = 0
    for b, rank in zip(bs, ranks, strict=True):
        pieces.append((a[column : column + rank], b[:, column : column + rank]) if rank else None)
        column += rank
    return pieces


def _parts_table_and_head(names: dict[str, str], get: Callable[[str], Tensor], table: str, head: str) -> bool:
    """Whether adapters of a model whose table is its head make them two: `peft` replaces the one and leaves the other,
    unless the file holds both, and the same.
    """
    same = table in names and head in names and torch.equal(get(names[table]), get(names[head]))
    if same:
        del names[head]
    return not same and (table in names or head in names)


def _open(
    directory: Path, stack: ExitStack, allow_pickle: bool
) -> tuple[dict[str, Shape], Callable[[str], Tensor], dict[str, str]]:
    path = directory / _WEIGHTS
    if path.exists():
        try:
            file = stack.enter_context(safe_open(path, "pt"))
        except SafetensorError as error:
            raise LmlabError(f"'{path}' is damaged ({error}).", "Copy the adapters again.") from None
        return (
            {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()},  # noqa: SIM118
            file.get_tensor,
            file.metadata() or {},
        )
    path = directory / _PICKLE
    if not path.exists():
        raise UserError(f"'{directory}' holds no {_WEIGHTS}.")
    if not allow_pickle:
        raise UserError(
            f"'{directory}' holds its weights only as a pickle, which lmlab does not open unasked.",
            "Allow it if you trust its source.",
        )
    tensors = read_pickle(path)
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}, tensors.__getitem__, {}


def _problems(
    found: Mapping[str, Shape],
    layout: Layout,
    targets: list[str],
    saved: list[str],
    ranks: Mapping[str, int],
    beside: Mapping[str, Shape],
) -> list[str]:
    expected = dict(beside) | {name: layout.shapes[name] for name in saved if name in layout.shapes}
    if layout.head in saved:
        expected[layout.head] = layout.shapes[layout.stored_of(["embedding.weight"])[0]]
    for stored in targets:
        inputs, outputs = layout.in_and_out(stored)
        expected |= {
            f"{stored}.lora_A.weight": (ranks[stored], inputs),
            f"{stored}.lora_B.weight": (outputs, ranks[stored]),
        }
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in expected]
    problems += [
        f"{n} has shape {list(shape)}, not {list(expected[n])}"
        for n, shape in found.items()
        if n in expected and shape != expected[n]
    ]
    return sorted(problems)


def _canonical(name: str, layout: Layout) -> str:
    """A tensor's name without what the library puts around it; that of a body alone with the prefix of the complete
    model.
    """
    name = name.removeprefix(_PREFIX).replace(".modules_to_save.default.", ".").replace(".default.weight", ".weight")
    if (found := canonical(name, layout.canonical)) is not None:
        return found
    match = re.fullmatch(r"(.*)(\.lora_[AB]\.weight)", name)
    if match is None:
        return layout.canonical(name)
    return layout.canonical(f"{match[1]}.weight").removesuffix(".weight") + match[2]


def _is_target(stored: str, settings: Mapping[str, Any], groups: Mapping[str, list[str]]) -> bool:
    targets = settings.get("target_modules") or []
    if _matches(stored, settings.get("exclude_modules") or []):
        return False
    chosen = stored in groups if targets == "all-linear" else _matches(stored, targets)
    layers = settings.get("layers_to_transform")
    if not chosen or layers is None or isinstance(targets, str):
        return chosen
    number = re.search(r"\.(\d+)\.", stored)
    return number is not None and int(number[1]) in ([layers] if isinstance(layers, int) else layers)


def _matches(name: str, wanted: str | list[str]) -> bool:
    """Whether a module is meant: by a pattern for its whole name, or by ends of names."""
    return re.fullmatch(wanted, name) is not None if isinstance(wanted, str) else _ends(name, wanted)


def _ends(name: str, ends: list[str]) -> bool:
    return any(f".{name}".endswith(f".{end}") for end in ends)


def _pattern(settings: Mapping[str, Any], key: str, stored: str, default: Any) -> Any:
    patterns = settings.get(key) or {}
    return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", stored)), default)


def _target_modules(adapted: set[str], modules: list[str]) -> list[str]:
    """The shortest ends of names that cover the adapted modules and no other."""
    ends = set()
    for stored in sorted(adapted):
        parts = stored.split(".")
        candidates = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        ends.add(next(end for end in candidates if all(name in adapted for name in modules if _ends(name, [end]))))
    return sorted(ends)


def _shortest(value: float) -> float | int:
    return int(value) if value == int(value) else value
