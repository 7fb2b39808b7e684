"""What a circuit does on single prompts: where its heads look, and which tokens it and the model would write.

Shapes: B examples, T tokens, E edges, N heads, V tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lmlab.methods.edge_pruning.graph.circuit import Circuit
from lmlab.methods.edge_pruning.graph.formats import node_of
from lmlab.methods.edge_pruning.masking.counterfactuals import Counterfactuals
from lmlab.methods.edge_pruning.masking.metrics import last
from lmlab.models.internals.taps import Recorder
from lmlab.reports import Details, Figure, Section, Table, Tokens, heat_map

_HEADS, _TOKENS = 6, 5  # that are shown of each prompt: more would make the page long


def prompts_section(
    circuit: Circuit,
    task: Counterfactuals,
    written: Callable[[int], str],
    count: int = 3,
    heads: int = _HEADS,
    between: str = "",
) -> Section:
    """The first prompts, with the most probable next tokens of model and circuit, and the attention patterns of the
    heads that have most edges.

    Arguments:
        written: the text of a token.
        count: how many prompts.
        between: what stands between tokens whose texts are no parts of one text, such as numbers.
    """
    shown = busiest_heads(circuit, heads)
    index_B = torch.arange(min(count, len(task.examples)))
    seen = Recorder("blocks.*.attention.pattern")
    with torch.no_grad():
        z_E = circuit.kept_E.float()[None].to(task.masked.ones())
        outputs = task.outputs(task.masked(task.inputs(index_B), z_E, taps=seen))
    blocks: list[Any] = []
    for row in index_B.tolist():
        length = int(task.examples.real[row].sum())
        pieces = [[written(token) for token in each[row, :length].tolist()] for each in _inputs(task)]
        folded: list[Any] = [
            Tokens([piece + between for piece in pieces[1]], caption="The corrupted prompt."),
            *_next_tokens(task, outputs, row, written),
        ]
        for layer, head in shown:
            pattern_TT = seen[f"blocks.{layer}.attention.pattern"][row, head, :length, :length]
            names = [f"{number} {piece}" for number, piece in enumerate(pieces[0])]
            drawn = heat_map(pattern_TT.tolist(), names, names, "looked at", "looking", "attention")
            folded.append(Figure(drawn, f"Attention of a{layer}.h{head} within the circuit."))
        whole = Tokens([piece + between for piece in pieces[0]], caption=f"Prompt {row + 1}.")
        blocks += [whole, Details(f"Prompt {row + 1}: next tokens and attention", folded)]
    text = "In the circuit, pruned edges carry what their ablation says; attention is that of the circuit."
    return Section("Prompts", blocks, text)


def _inputs(task: Counterfactuals) -> tuple[Tensor, Tensor]:
    return task.examples.clean, task.examples.corrupted


def busiest_heads(circuit: Circuit, count: int) -> list[tuple[int, int]]:
    """Layer and number of the heads with most edges, in the order of layers."""
    graph, edges = circuit.graph, Counter[str]()
    for writer, reader in circuit.edges:
        edges.update((writer, node_of(reader, graph)[0].partition("@")[0]))
    names = {
        f"a{layer}.h{head}": (layer, head)
        for layer in range(graph.config.num_layers)
        for head in range(graph.config.num_heads)
    }
    found = sorted((name for name in edges if name in names), key=lambda name: (-edges[name], names[name]))
    return sorted(names[name] for name in found[:count])


def _next_tokens(task: Counterfactuals, outputs_BPA: Tensor, row: int, written: Callable[[int], str]) -> list[Table]:
    """The tokens that the model and the circuit find most probable at the last position; none where outputs are
    numbers.
    """
    if task.examples.distance == "mse":
        return []
    index_B = torch.tensor([row])
    both = [last(task, each, index_B)[0].double() for each in (task.full(index_B), outputs_BPA[row : row + 1])]
    ids = task.examples.answer_ids
    likely = sorted({int(place) for each in both for place in each.topk(min(_TOKENS, len(each))).indices})
    likely.sort(key=lambda place: -float(both[0][place]))
    rows: list[list[Any]] = [
        [written(place if ids is None else ids[place]), *(float(each[place].exp()) for each in both)]
        for place in likely
    ]
    return [Table(["next token", "model", "circuit"], rows, "Probabilities at the last position.")]
