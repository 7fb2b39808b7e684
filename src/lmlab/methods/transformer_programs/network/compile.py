"""From a program to a network that computes it: gates and predicates that are decided, tables as exact MLPs. So
programs that were edited, or written by hand, can be measured, trained further and exported again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from lmlab.errors import UserError
from lmlab.methods.transformer_programs.config import MOST_ROWS
from lmlab.methods.transformer_programs.network.model import Block, Mlps, ProgramTransformer
from lmlab.methods.transformer_programs.network.spec import NetworkSpec
from lmlab.methods.transformer_programs.program.domains import PADDING, domains
from lmlab.methods.transformer_programs.program.ir import (
    SELECT_CLOSEST,
    SELECT_SUM,
    Lookup,
    Node,
    Program,
    Select,
    Value,
    add_constant,
)
from lmlab.methods.transformer_programs.program.tables import PLACEHOLDER, Classifier

_DECIDED = 10.0  # logit of what is chosen; of everything else its negative
_CERTAIN = 20.0  # logit of a table's result over its default
_MOST_COUNTS = 4096  # greatest count in a table
_EXACT = 1 << 24  # whole numbers up to it are exact in fp32
_ANY_LENGTH = 1024  # places for which networks of programs for any length are made


@dataclass(frozen=True)
class _Layout:
    """Where each node stands in the network.

    Attributes:
        layer: of each node.
        name: of each variable in the network.
        index: of each categorical variable, the number of each of its values.
    """

    spec: NetworkSpec
    layer: Mapping[str, int]
    name: Mapping[str, str]
    index: Mapping[str, Mapping[Value, int]]


def from_program(program: Program, seed: int | Sequence[int] = 0) -> ProgramTransformer:
    """The network of a program, as one seed or several equal ones, whose answers are the same. Variables are named by
    their layers.

    Raises:
        UserError: a node computes what no such network does; the message names it.
    """
    program = _without_constants(program)
    layout = _lay_out(program)
    model = ProgramTransformer(layout.spec, [seed] if isinstance(seed, int) else seed)
    with torch.no_grad():
        _decide_everything(model)
        for node in program.nodes:
            block = model.blocks[layout.layer[node.name]]
            assert isinstance(block, Block)
            if isinstance(node, Select):
                _write_head(block, node, layout)
            else:
                _write_table(block, node, program, layout)
        if layout.spec.embedding_vars:
            _write_embeddings(model, program)
        _write_classifier(model, program, layout)
        for parameter in model.parameters():
            parameter[1:] = parameter[:1]
    return model


def _without_constants(program: Program) -> Program:
    """The program without features of the classifier whose rows are all equal, which are added to the constant: they
    may be of variables that a network has no value for.
    """
    for feature, rows in program.classifier.weights.items():
        if feature in program.numerical or program.classifier.matters(feature) or not rows:
            continue
        weights = {name: each for name, each in program.classifier.weights.items() if name != feature}
        rest = replace(program, classifier=Classifier(program.labels, weights))
        program = add_constant(rest, next(iter(rows.values())))
    return program


def _lay_out(program: Program) -> _Layout:
    known = domains(program)
    if program.vocabulary is None:
        raise UserError("The program does not say its vocabulary, which a network needs.", "Add 'vocabulary' to it.")
    words = (PADDING, *(word for word in program.vocabulary if word != PADDING))
    embedded = sum(name.startswith("var") for name in program.inputs)
    learned = next((name for name in program.inputs if name in program.numerical and name != "ones"), None)
    if learned is not None and (program.classifier.matters(learned) or learned in program.live):
        raise UserError(f"'{learned}' is a number of each word, which a network made from a program does not have.")
    if embedded and program.classifier.matters("tokens"):
        raise UserError("The classifier has rows for tokens, which a network of embedded words does not.")
    if program.max_length is None and program.reads_positions:
        raise UserError(f"{program.reads_positions}, but the program does not say how many.", "Add 'max_length' to it.")
    if embedded and any("tokens" in node.reads for node in program.nodes):
        raise UserError("A node reads tokens, which a network of embedded words does not.")
    layers: dict[str, int] = {name: -1 for name in program.inputs}
    place: dict[str, tuple[int, str, int]] = {}
    counts: dict[tuple[int, str], int] = {}
    for node in program.nodes:
        # a table may read the heads of its own layer; a head reads what stands before the layer
        if isinstance(node, Lookup):
            layer = max(0, *(layers[name] + (_is_table(program, name)) for name in node.inputs))
            kind = "num_mlp" if all(name in program.numerical for name in node.inputs) else "mlp"
            if kind == "mlp" and any(name in program.numerical for name in node.inputs):
                raise UserError(f"'{node.name}' reads categories and numbers together, which no MLP of a network does.")
        else:
            layer = max(0, *(layers[name] + 1 for name in node.reads))
            kind = "num_attn" if node.op == SELECT_SUM else "attn"
        layers[node.name] = layer
        number = counts.get((layer, kind), 0)
        counts[layer, kind] = number + 1
        place[node.name] = layer, kind, number
    depth = 1 + max(layers.values(), default=0) if program.nodes else 1
    most = {
        kind: max([count for (_, each), count in counts.items() if each == kind] or [0])
        for kind in ("attn", "num_attn", "mlp", "num_mlp")
    }
    values = {name: sorted(domain or (), key=lambda v: (isinstance(v, str), v)) for name, domain in known.items()}
    index = _indices(program, values, words)
    longest = _length(program)
    highest = [1 + max(each.values(), default=0) for each in index.values()]
    width = 1 + max([longest if program.max_length else 1, len(words) * (not embedded), *highest])
    causal = [node for node in program.nodes if isinstance(node, Select) and node.causal and not program.autoregressive]
    if any(node.op == SELECT_CLOSEST for node in causal):
        raise UserError(f"'{causal[0].name}' takes one value of the places up to its own, which no head here does.")
    layout_causal = _causal_first(program, place) if causal else 0
    heads = [1 + number for _, kind, number in place.values() if kind == "num_attn"]
    spec = NetworkSpec(
        vocabulary=words,
        labels=program.labels,
        d_var=width,
        context=longest,
        num_layers=depth,
        cat_heads=most["attn"],
        num_heads=max(heads, default=0),
        cat_mlps=most["mlp"],
        num_mlps=most["num_mlp"],
        d_mlp=max([4, *(_units(node, program) for node in program.nodes if isinstance(node, Lookup))]),
        mlp_vars_in=max([1, *(len(node.inputs) for node in program.nodes if isinstance(node, Lookup))]),
        embedding_vars=embedded,
        causal_num_heads=layout_causal,
        predicates="sets" if any(map(_several, program.nodes)) else "table",
        refuses=any(isinstance(node, Lookup) and node.default is None for node in program.nodes),
        bounded=program.bounded,
        autoregressive=program.autoregressive,
        pool_outputs=program.pool_outputs,
        forbid_positions=program.max_length is None,
        lower=program.lower,
        replace_numbers=program.replace_numbers,
        bos=program.bos,
        eos=program.eos,
    )
    names = {name: name for name in program.inputs}
    names |= {node: f"{kind}_{layer}_{number}_outputs" for node, (layer, kind, number) in place.items()}
    return _Layout(spec, layers, names, index)


def _several(node: Node) -> bool:
    """Whether a query of a head has several partners."""
    return isinstance(node, Select) and len({query for query, _ in node.predicate}) < len(node.predicate)


def _is_table(program: Program, name: str) -> int:
    """1 where a variable is the result of a table, which a table of the same layer cannot read."""
    return int(any(node.name == name and isinstance(node, Lookup) for node in program.nodes))


def _causal_first(program: Program, place: dict[str, tuple[int, str, int]]) -> int:
    """How many counting heads of each layer are causal; they change places so as to be its first."""
    layers: dict[int, list[tuple[bool, str]]] = {}
    for node in program.nodes:
        if isinstance(node, Select) and node.op == SELECT_SUM:
            layers.setdefault(place[node.name][0], []).append((not node.causal, node.name))
    most = max(sum(not other for other, _ in heads) for heads in layers.values())
    for layer, heads in layers.items():
        next_of = {False: 0, True: most}
        for other, name in heads:
            place[name] = layer, "num_attn", next_of[other]
            next_of[other] += 1
    return most


def _indices(
    program: Program, values: Mapping[str, list[Value]], words: tuple[str, ...]
) -> dict[str, dict[Value, int]]:
    """The number of each value of each categorical variable."""
    index: dict[str, dict[Value, int]] = {}
    for name in program.inputs:
        if name == "tokens":
            if program.embeddings is not None and any(each.startswith("var") for each in program.inputs):
                continue
            index[name] = {word: number for number, word in enumerate(words)}
        elif name == "positions":
            index[name] = {place: place for place in range(program.max_length or 0)}
        elif program.embeddings is not None and name in program.embeddings.columns and name not in program.numerical:
            numbers = program.embeddings.columns[name]
            pairs = zip(program.embeddings.values(name), numbers, strict=True)
            index[name] = {value: int(number) for value, number in pairs if not isinstance(value, float)}
    for node in program.nodes:
        if isinstance(node, Lookup):
            results = values[node.name]
            plain = all(isinstance(each, int) and 0 <= each < 10_000 for each in results)
            index[node.name] = {
                each: each if plain and isinstance(each, int) else number for number, each in enumerate(results)
            }
        elif node.op == SELECT_CLOSEST:
            index[node.name] = index[node.value]
    return index


def _units(node: Lookup, program: Program) -> int:
    """Hidden units that a table needs: one a row, or three to tell one number from its neighbors."""
    return len(node.table) * (3 if node.inputs[0] in program.numerical else 1)


def _decide_everything(model: ProgramTransformer) -> None:
    """Parts that no node uses read the first variable and look for a value that nothing has."""
    for name, parameter in model.named_parameters():
        parameter.zero_()
        if name.endswith("predicates.table"):
            parameter.fill_(-_DECIDED)
            if model.spec.predicates != "sets":
                parameter[..., -1] = _DECIDED


def _choose(gate: torch.Tensor, place: int) -> None:
    gate.fill_(-_DECIDED)
    gate[place] = _DECIDED


def _write_head(block: Block, node: Select, layout: _Layout) -> None:
    layer = layout.layer[node.name]
    number = int(layout.name[node.name].split("_")[-2])
    head = number if node.op == SELECT_CLOSEST else number + layout.spec.cat_heads
    cats = layout.spec.cat_names(layer)
    _choose(block.key[0, head], cats.index(layout.name[node.key]))
    _choose(block.query[0, head], cats.index(layout.name[node.query]))
    if node.op == SELECT_CLOSEST:
        _choose(block.value[0, head], cats.index(layout.name[node.value]))
    else:
        _choose(block.num_value[0, number], layout.spec.num_names(layer).index(layout.name[node.value]))
    table = block.predicates.table[0, head]
    queries, keys = layout.index[node.query], layout.index[node.key]
    for query, key in node.predicate:
        if query in queries and key in keys:
            if layout.spec.predicates != "sets":
                table[queries[query]] = -_DECIDED
            table[queries[query], keys[key]] = _DECIDED


def _write_table(block: Block, node: Lookup, program: Program, layout: _Layout) -> None:
    layer, spec = layout.layer[node.name], layout.spec
    number = int(layout.name[node.name].split("_")[-2])
    counts = node.inputs[0] in program.numerical
    mlps = block.num_mlp if counts else block.cat_mlp
    assert isinstance(mlps, Mlps)
    own = [*spec.num_names(layer), *(f"num_attn_{layer}_{h}_outputs" for h in range(spec.num_heads))]
    names = own if counts else [*spec.cat_names(layer), *spec.head_names(layer)]
    reads = [*node.inputs, *[node.inputs[0]] * (spec.mlp_vars_in - len(node.inputs))]
    for slot, name in enumerate(reads):
        _choose(mlps.read[0, number, slot], names.index(layout.name[name]))
    results = layout.index[node.name]
    # the last category, which nothing else has, stands for keys that the table refuses
    mlps.b_out[0, number, spec.d_var - 1 if node.default is None else results[node.default]] = _CERTAIN / 2
    w_in, b_in, w_out = mlps.w_in[0, number], mlps.b_in[0, number], mlps.w_out[0, number]
    if not counts:
        for unit, (key, result) in enumerate(node.table.items()):
            for slot, (name, value) in enumerate(zip(node.inputs, key, strict=True)):
                place = layout.index[name].get(value) if not isinstance(value, float) else None
                if place is not None:
                    w_in[slot * spec.d_var + place, unit] = 1.0
            b_in[unit] = 1.0 - len(node.inputs)  # above 0 only where all inputs are those of the key
            w_out[unit, results[result]] = _CERTAIN
        return
    base, greatest = 1, _greatest(program, spec.context)
    for slot, name in reversed(list(enumerate(node.inputs))):
        tops = [key[slot] for key in node.table]
        if any(not float(top).is_integer() or top > _MOST_COUNTS for top in tops if not isinstance(top, str)):
            raise UserError(f"'{node.name}' has keys that are no counts up to {_MOST_COUNTS:,}.")
        w_in[slot, :] = float(base)
        # no count that a sequence can have may carry over into the next digit
        base *= 1 + max([greatest[name], *(int(top) for top in tops)])
        if len(node.inputs) > 1 and base > _EXACT:
            raise UserError(
                f"'{node.name}' reads counts so large that single precision cannot tell all pairs apart.",
                "Lower 'max_length'.",
            )
    for row, (key, result) in enumerate(node.table.items()):
        if any(not isinstance(value, str) and value < 0 for value in key):
            continue  # no count is negative, and its code would be that of others
        code = sum(float(w_in[slot, 0]) * int(value) for slot, value in enumerate(key))
        for unit, (shift, scale) in enumerate(((1.0, 1.0), (0.0, -2.0), (-1.0, 1.0))):  # a peak of height 1 at the code
            b_in[3 * row + unit] = shift - code
            w_out[3 * row + unit, results[result]] = scale * _CERTAIN


def _length(program: Program) -> int:
    """The places that the network is made for: those of the program; of one for any length as many as its tables of
    several counts can list, for which they are rows of a grid.
    """
    if program.max_length is not None:
        return program.max_length
    length = _ANY_LENGTH
    while length > 2 and _longest_grid(program, length) > MOST_ROWS:
        length //= 2
    return length


def _longest_grid(program: Program, length: int) -> int:
    greatest = _greatest(program, length)
    grids = [
        math.prod(1 + greatest[name] for name in node.inputs)
        for node in program.nodes
        if isinstance(node, Lookup) and len(node.inputs) > 1 and all(name in greatest for name in node.inputs)
    ]
    return max(grids, default=0)


def _greatest(program: Program, length: int) -> dict[str, int]:
    """The greatest value of each count on so many places."""
    found = {name: 1 for name in program.inputs if name in program.numerical}
    for node in program.nodes:
        if isinstance(node, Select) and node.op == SELECT_SUM:
            found[node.name] = length * found[node.value]
    return found


def _write_embeddings(model: ProgramTransformer, program: Program) -> None:
    embeddings = program.embeddings
    assert embeddings is not None
    names = [name for name in program.inputs if name.startswith("var")]
    for number, word in enumerate(model.spec.vocabulary):
        if word not in embeddings.index:
            continue  # padding, which no place of a sequence has
        for variable, name in enumerate(names):
            _choose(model.embedding[0, number, variable], int(embeddings.columns[name][embeddings.index[word]]))


def _write_classifier(model: ProgramTransformer, program: Program, layout: _Layout) -> None:
    spec = layout.spec
    cats, nums = spec.cat_names(spec.num_layers), spec.num_names(spec.num_layers)
    for feature, rows in program.classifier.weights.items():
        name = layout.name[feature]
        if feature in program.numerical:
            place = len(cats) * spec.d_var + nums.index(name)
            model.unembed[0, place] = torch.tensor(rows[PLACEHOLDER])
            continue
        first = cats.index(name) * spec.d_var
        for value, number in layout.index[feature].items():
            if str(value) in rows:
                model.unembed[0, first + number] = torch.tensor(rows[str(value)])
