"""From a network to the program that it computes under the arg max (Friedman et al. 2023, section 3.5), exactly.

Shapes: S seeds, H heads, V variables, D values of a category.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.methods.transformer_programs.config import MOST_ROWS
from lmlab.methods.transformer_programs.network.model import Block, Mlps, ProgramTransformer
from lmlab.methods.transformer_programs.network.sampling import Sampler
from lmlab.methods.transformer_programs.program.interpret import Interpreter
from lmlab.methods.transformer_programs.program.ir import Lookup, Node, Program, Select, Value, check
from lmlab.methods.transformer_programs.program.tables import PLACEHOLDER, Classifier, Embeddings

CATEGORIES = "Emb{i}.V{j:02d}"
DISCRETE = Sampler("argmax", 1.0)
_PAD = "<pad>"
_AT_ONCE = 4096  # inputs: more take memory, fewer start more passes


@dataclass
class _State:
    """What has been converted so far.

    Attributes:
        values: of each categorical variable, what each category is called; None for one that no value has.
        greatest: of each numerical variable, the greatest value; None if it is no whole number.
        unbounded: the program runs at any length, where counts go beyond these.
    """

    values: dict[str, list[Value | None]]
    greatest: dict[str, int | None]
    unbounded: bool
    nodes: list[Node] = field(default_factory=list)


def to_program(
    model: ProgramTransformer,
    seed: int = 0,
    reach: Sequence[Sequence[str]] = (),
    max_rows: int = MOST_ROWS,
    max_length: int | None = None,
    about: dict[str, Any] | None = None,
) -> Program:
    """The program of one seed.

    Arguments:
        seed: its place among the model's seeds.
        reach: sequences by which tables that would be too long are found: they get the rows that these reach, and any
            other key is an error.
        max_rows: the longest table.
        max_length: places for which the tables of counts shall hold, if more than the network's context.

    Raises:
        UserError: the network computes what no program says, or a table is too long and `reach` is empty.
    """
    spec = model.spec
    if spec.position_bias != "fixed":
        raise UserError(
            f"position_bias '{spec.position_bias}': a program takes the nearest match, which these biases do not say.",
            "Train with the fixed bias.",
        )
    model = one_seed(model, seed)
    length = max(spec.context, max_length or 0)
    if spec.bounded:
        program = _converted(model, length, False, reach, max_rows, about)
        return check(replace(program, bounded=True, max_length=length), "the converted program")
    program = _converted(model, length, spec.forbid_positions, reach, max_rows, about)
    if not spec.forbid_positions and program.reads_positions is None:
        program = _converted(model, length, True, reach, max_rows, about)
    return check(program, "the converted program")


def _converted(
    model: ProgramTransformer, length: int, unbounded: bool, reach: Sequence[Sequence[str]], max_rows: int,
    about: dict[str, Any] | None,
) -> Program:  # fmt: skip
    """The program.

    Arguments:
        length: places for which tables of counts hold.
        unbounded: it runs at any length, so that no table of counts may answer what it was not made for.
    """
    spec = model.spec
    state = _inputs(model, length, unbounded)
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        _heads(spec, block, layer, state, length)
        for kind in ("cat", "num"):
            mlps = getattr(block, f"{kind}_mlp", None)
            if isinstance(mlps, Mlps):
                _mlps(model, mlps, kind, layer, state, reach, max_rows)
    return _assemble(model, state, state.nodes, about)


def one_seed(model: ProgramTransformer, seed: int) -> ProgramTransformer:
    """A network of one of the seeds, by its place."""
    if len(model.seeds) == 1:
        return model
    single = ProgramTransformer(model.spec, [model.seeds[seed]], model.attention).to(model.unembed.device)
    with torch.no_grad():
        for name, parameter in single.named_parameters():
            parameter.copy_(model.get_parameter(name)[seed : seed + 1])
    return single


def _inputs(model: ProgramTransformer, length: int, unbounded: bool) -> _State:
    spec = model.spec
    values: dict[str, list[Value | None]] = {}
    for i in range(spec.embedding_vars):
        values[f"var{i}_embeddings"] = [f"Emb{i}.V{j:02d}" for j in range(spec.d_var)]
    if not spec.embedding_vars:
        spare: list[Value | None] = [None] * (spec.d_var - len(spec.vocabulary))
        values["tokens"] = [*spec.vocabulary, *spare]
    values["positions"] = list(range(spec.d_var))
    greatest: dict[str, int | None] = {name: None if spec.learned_numbers else 1 for name in spec.num_inputs}
    state = _State(values, greatest, unbounded)
    if spec.prefix_count:
        same = tuple((token, token) for token in spec.vocabulary if token != _PAD)
        state.nodes.append(Select("select_sum", "prefix_count", "tokens", "tokens", "ones", same, causal=True))
        greatest["prefix_count"] = length
    return state


def _heads(spec: Any, block: Block, layer: int, state: _State, length: int) -> None:
    count = block.cat_heads + block.num_heads
    if not count:
        return
    with torch.no_grad():
        key, query, value = block.gates(DISCRETE, block._forbidden(len(spec.cat_names(layer))))
        wanted = block.predicates(DISCRETE)[0]
        num_value = block.num_gates(DISCRETE)[0].argmax(-1).tolist() if block.num_heads else []
    cats, nums = spec.cat_names(layer), spec.num_names(layer)
    keys, queries = key[0].argmax(-1).tolist(), query[0].argmax(-1).tolist()
    values = [] if value is None else value[0].argmax(-1).tolist()
    for head in range(count):
        names = cats[keys[head]], cats[queries[head]]
        pairs = _pairs(wanted[head], state.values[names[0]], state.values[names[1]])
        if head < block.cat_heads:
            name, source = f"attn_{layer}_{head}_outputs", cats[values[head]]
            state.values[name] = state.values[source]
            state.nodes.append(Select("select_closest", name, *names, source, pairs))
            continue
        number = head - block.cat_heads
        name, source = f"num_attn_{layer}_{number}_outputs", _plain(nums[num_value[number]])
        most = state.greatest[source]
        state.greatest[name] = None if most is None else most * length
        causal = number < spec.causal_num_heads
        state.nodes.append(Select("select_sum", name, *names, source, pairs, causal))


def _plain(name: str) -> str:
    """Constants of 1 are one variable in a program."""
    return "ones" if name.startswith("ones_") else name


def _pairs(wanted: Tensor, keys: list[Value | None], queries: list[Value | None]) -> tuple[tuple[Value, Value], ...]:
    """The pairs of a predicate, without queries that no place has. A key that no place has is the empty text, as in the
    reference, unless that is a token.
    """
    return tuple(
        (query, "" if keys[k] is None else keys[k])
        for q, query in enumerate(queries)
        if query is not None and query != _PAD
        for k in wanted[q].nonzero().flatten().tolist()
        if keys[k] is not None or "" not in keys
    )


def _mlps(
    model: ProgramTransformer, mlps: Mlps, kind: str, layer: int, state: _State, reach: Sequence[Sequence[str]],
    max_rows: int,
) -> None:  # fmt: skip
    spec = model.spec
    available = (
        [*spec.cat_names(layer), *spec.head_names(layer)]
        if kind == "cat"
        else [*spec.num_names(layer), *(f"num_attn_{layer}_{head}_outputs" for head in range(spec.num_heads))]
    )
    logits: Tensor = mlps.read
    if kind == "cat" and spec.forbid_positions:
        forbidden = torch.arange(logits.shape[-1]) == spec.cat_inputs.index("positions")
        logits = logits.masked_fill(forbidden, -1e30)
    reads = logits[0].argmax(-1).tolist()
    refused = spec.d_var - 1 if spec.refuses else None
    made: list[Lookup] = []
    for number in range(mlps.count):
        prefix = "mlp" if kind == "cat" else "num_mlp"
        name = f"{prefix}_{layer}_{number}_outputs"
        slots = [_plain(available[each]) for each in reads[number]]
        inputs = tuple(dict.fromkeys(slots))  # an input that is read twice is one argument
        places = [inputs.index(slot) for slot in slots]
        if kind == "cat":
            made.append(_cat_table(mlps, number, name, inputs, places, state, spec.d_var, refused))
        else:
            grid = spec.context * (layer + 1)
            made.append(_num_table(model, mlps, number, name, inputs, places, state, grid, reach, max_rows, refused))
        results: list[Value | None] = list(range(spec.d_var))
        state.values[name] = [*results[:-1], None] if spec.refuses else results
    state.nodes += made


def _results(mlps: Mlps, number: int, keys: Tensor, places: list[int], width: int) -> list[int]:
    """What an MLP gives for keys (rows, inputs): categories, or numbers where the width is 1."""
    columns = keys[:, places]  # (rows, slots)
    if width > 1:
        read = torch.nn.functional.one_hot(columns, width).to(mlps.w_in.dtype).flatten(1)
    else:
        read = columns.to(mlps.w_in.dtype)
    with torch.no_grad():
        every = read.expand(mlps.count, *read.shape)
        found: list[int] = mlps.table(every)[0, number].argmax(-1).tolist()
    return found


def _cat_table(
    mlps: Mlps, number: int, name: str, inputs: tuple[str, ...], places: list[int], state: _State, d_var: int,
    refused: int | None,
) -> Lookup:  # fmt: skip
    keys = torch.tensor(list(itertools.product(range(d_var), repeat=len(inputs))))
    results = _results(mlps, number, keys, places, d_var)
    default: int | None = min(Counter(results).items(), key=lambda item: (-item[1], item[0]))[0]
    rows: dict[tuple[Value | float, ...], int] = {}
    for key, result in zip(keys.tolist(), results, strict=True):
        called = [state.values[each][place] for each, place in zip(inputs, key, strict=True)]
        if None not in called and not (len(inputs) > 1 and _PAD in called):
            rows[tuple(each for each in called if each is not None)] = result
    if refused is not None and (refused == default or refused in rows.values()):
        default = None  # any key without a row is refused
    table: dict[tuple[Value | float, ...], Value] = {
        key: result for key, result in rows.items() if result not in (default, refused)
    }
    return Lookup(name, inputs, table, default)


def _num_table(
    model: ProgramTransformer, mlps: Mlps, number: int, name: str, inputs: tuple[str, ...], places: list[int],
    state: _State, grid: int, reach: Sequence[Sequence[str]], max_rows: int, refused: int | None,
) -> Lookup:  # fmt: skip
    """The table of an MLP of counts: a grid as large as the reference's, and as far beyond as the counts can go."""
    most = [state.greatest[each] for each in inputs]
    if None in most:
        wrong = inputs[most.index(None)]
        raise UserError(
            f"'{name}' reads '{wrong}', which sums learned numbers: no table lists them all.",
            "Train with constants (learned_numbers: false).",
        )
    # without a bound there is no default, which is that of the reference's grid
    least = 0 if state.unbounded else grid
    ranges = [range(max(least, each + 1)) for each in most if each is not None]
    if state.unbounded and len(inputs) == 1:
        settled = _settles(mlps, number, len(ranges[0]), len(places))
        if settled is not None:
            default_of_all, last = settled
            keys = torch.arange(last + 1)[:, None]
            results = _results(mlps, number, keys, places, 1)
            rows_of: dict[tuple[Value | float, ...], Value] = {
                (key,): result for key, result in enumerate(results) if result not in (default_of_all, refused)
            }
            if default_of_all == refused:
                return Lookup(name, inputs, rows_of, None)
            if refused not in results:
                return Lookup(name, inputs, rows_of, default_of_all)
    rows = 1
    for each in ranges:
        rows *= len(each)
    if rows <= max_rows:
        keys = torch.tensor(list(itertools.product(*ranges)))
        results = _results(mlps, number, keys, places, 1)
        inside = [result for key, result in zip(keys.tolist(), results, strict=True) if max(key) < grid]
        default: Value | None = Counter(inside).most_common(1)[0][0]
        if state.unbounded or (refused is not None and refused in results):
            default = None
    else:
        if not len(reach):
            spans = ", ".join(f"'{each}' 0 to {top}" for each, top in zip(inputs, most, strict=True))
            raise UserError(
                f"The table of '{name}' would have {rows:,} rows ({spans}); the limit is {max_rows:,}.",
                "Give data, whose reachable rows are then written and any other is an error; or raise the limit.",
            )
        interpreter, reached = Interpreter(_assemble(model, state, state.nodes, None)), set[tuple[int, ...]]()
        for first in range(0, len(reach), _AT_ONCE):
            columns = interpreter.run(reach[first : first + _AT_ONCE]).columns
            read = [columns[each].ravel().tolist() for each in inputs]
            reached |= {tuple(map(int, row)) for row in zip(*read, strict=True)}
        keys = torch.tensor(sorted(reached))
        results = _results(mlps, number, keys, places, 1)
        default = None
    table: dict[tuple[Value | float, ...], Value] = {
        tuple(key): result
        for key, result in zip(keys.tolist(), results, strict=True)
        if result not in (default, refused)
    }
    return Lookup(name, inputs, table, default)


def _settles(mlps: Mlps, number: int, least: int, slots: int) -> tuple[int, int] | None:
    """What an MLP of one count gives for every count from some point on, and that point; None if that is not certain.

    Beyond its last bend each logit is a line, so that the highest one stays so if none rises faster.
    """
    with torch.no_grad():
        w_in = mlps.w_in[0, number, :slots].double().sum(0)
        b_in, w_out = mlps.b_in[0, number].double(), mlps.w_out[0, number].double()
        bends = (-b_in / w_in)[w_in != 0]
        last = max(least, int(bends.clamp(min=0).max().ceil()) + 1 if len(bends) else 0)
        if last > MOST_ROWS:
            return None
        slopes = (w_in.clamp(min=0)[:, None] * w_out).sum(0)
        winner = _results(mlps, number, torch.tensor([[last]]), [0] * slots, 1)[0]
        others = torch.cat([slopes[:winner], slopes[winner + 1 :]])
        return (winner, last) if bool((others < slopes[winner]).all()) or bool((slopes == 0).all()) else None


def _assemble(model: ProgramTransformer, state: _State, nodes: Sequence[Node], about: dict[str, Any] | None) -> Program:
    spec = model.spec
    numbers = [each for each in spec.num_inputs if each != "prefix_count" and not each.startswith("ones_")]
    embedded = [each for each in spec.cat_inputs if each != "tokens" and each != "positions"]
    inputs = dict.fromkeys(["tokens", "positions", "ones", *embedded, *numbers])
    names = {*inputs, *(node.name for node in nodes)}
    numerical = {"ones", *numbers} | {each for each in state.greatest if each in names}
    return Program(
        inputs=tuple(inputs),
        numerical=frozenset(numerical),
        nodes=tuple(nodes),
        classifier=_classifier(model, state, names),
        embeddings=_embeddings(model),
        autoregressive=spec.autoregressive,
        pool_outputs=spec.pool_outputs,
        bos=spec.bos,
        eos=spec.eos,
        vocabulary=spec.vocabulary,
        max_length=None if spec.forbid_positions else spec.context,
        lower=spec.lower,
        replace_numbers=spec.replace_numbers,
        about=dict(about or {}),
    )


def _classifier(model: ProgramTransformer, state: _State, names: set[str]) -> Classifier:
    spec = model.spec
    kept = [place for place, label in enumerate(spec.labels) if label not in spec.masked_labels]
    rows = model.unembed[0].detach().double()[:, kept].tolist()
    weights: dict[str, dict[str, tuple[float, ...]]] = {}
    cats, nums = spec.cat_names(spec.num_layers), spec.num_names(spec.num_layers)
    for place, name in enumerate(cats):
        if name in names and not (spec.forbid_positions and name == "positions"):
            part = rows[place * spec.d_var : (place + 1) * spec.d_var]
            values = state.values[name]
            weights[name] = {
                str(value): tuple(row) for value, row in zip(values, part, strict=True) if value is not None
            }
    for place, name in enumerate(nums):
        plain = _plain(name)
        if plain in names:
            row = rows[len(cats) * spec.d_var + place]
            before = weights.get(plain, {}).get(PLACEHOLDER, (0.0,) * len(row))
            weights[plain] = {PLACEHOLDER: tuple(a + b for a, b in zip(before, row, strict=True))}
    return Classifier(tuple(spec.labels[place] for place in kept), weights)


def _embeddings(model: ProgramTransformer) -> Embeddings | None:
    spec = model.spec
    columns: dict[str, tuple[int | float, ...]] = {}
    if spec.embedding_vars:
        chosen = model.embedding[0].detach().argmax(-1)
        columns = {f"var{i}_embeddings": tuple(chosen[:, i].tolist()) for i in range(spec.embedding_vars)}
    if spec.learned_numbers:
        for i in range(spec.num_vars):
            columns[f"num_var{i}_embeddings"] = tuple(model.numbers[0, :, i].detach().double().tolist())
    return Embeddings(spec.vocabulary, columns, CATEGORIES) if columns else None
