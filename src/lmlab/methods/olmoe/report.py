"""A page about what routers do: load, domains, vocabulary, co-activation, saturation, beside the published figures of
OLMoE and Mixtral.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.errors import UserError
from lmlab.methods.olmoe.routing.statistics import (
    RoutingStatistics,
    Tokens,
    most_coactivated,
    router_saturation,
    vocab_by_expert,
)
from lmlab.methods.olmoe.routing.trace import RoutingTrace
from lmlab.reports import Block, Cell, Details, Facts, Note, Page, Section, Series, Table, heat_map, line_chart
from lmlab.reports import Figure as Chart
from lmlab.stats import Interval

_TITLES: dict[Tokens, str] = {"input": "input token", "predicted": "predicted next token", "target": "true next token"}
_PUBLISHED_KINDS: dict[Tokens, str] = {
    "input": "input",
    "predicted": "predicted_output",
    "target": "ground_truth_output",
}
_MOST_TOKENS = 8  # of an expert, in a cell of a table
NO_INTERVALS = "One sequence tells no intervals: trace more texts, or with a smaller seq_len."
_NO_INTERVAL = 50.0  # points: half of what a share can be


def analyze(trace: RoutingTrace, earlier: Mapping[str, RoutingTrace] | None = None, groups: int = 20) -> dict[str, Any]:
    """All measures of a trace for JSON, with half-widths of 95 % confidence intervals.

    Arguments:
        earlier: traces of earlier checkpoints on the same tokens, by name, for saturation.
    """
    statistics = RoutingStatistics.of(trace, groups)
    found: dict[str, Any] = {
        "sequences": len(trace.input_ids_ST),
        "tokens": int(trace.input_ids_ST.size),
        "layers": list(trace.layers),
        "num_experts": trace.num_experts,
        "top_k": trace.top_k,
        "domains": list(trace.domains),
        "load": {str(k): {name: _json(each) for name, each in statistics.load(k).items()} for k in statistics.ks},
        "load_by_domain": {
            str(k): {name: _json(each) for name, each in statistics.load(k, True).items()} for k in statistics.ks
        },
        "domain_specialization": {str(k): _json(statistics.domain_specialization(k)) for k in statistics.ks},
        "coactivation": {
            name: {
                str(layer): _json(statistics.coactivation(layer, name))  # type: ignore[arg-type]
                for layer in trace.layers
            }
            for name in statistics.pair_counts
        },
        "vocab_specialization": {
            kind: {
                str(k): {key: each.tolist() for key, each in statistics.vocab_specialization(k, kind).items()}
                for k in statistics.ks
            }
            for kind in statistics.occurrences
        },
        "information": {
            str(k): {name: each.tolist() for name, each in statistics.information(k).items()} for k in statistics.ks
        },
    }
    if earlier:
        found["saturation"] = {
            name: {str(k): _json(router_saturation(each, trace, k, groups)) for k in statistics.ks}
            for name, each in earlier.items()
        }
    return found


def routing_page(
    trace: RoutingTrace,
    earlier: Mapping[str, RoutingTrace] | None = None,
    *,
    published: str | Path | None = None,
    decode: Callable[[int], str] | None = None,
    title: str = "What the routers do",
) -> Page:
    """The page.

    Arguments:
        earlier: traces of earlier checkpoints, by name.
        published: a folder with `published_router_saturation.csv` and `published_vocab_specialization.csv`, drawn
            beside.
        decode: the text of a token id; by default its number.
    """
    published = None if published is None else Path(published)
    statistics = RoutingStatistics.of(trace)
    facts = {
        "Tokens": f"{trace.input_ids_ST.size:,}",
        "Sequences": f"{len(trace.input_ids_ST):,}",
        "Layers": f"{len(trace.layers)}",
        "Experts": f"{trace.top_k} of {trace.num_experts}",
    }
    sections = [
        Section("Trace", [Facts(facts)]),
        _load_section(statistics),
        _domain_section(statistics),
        _vocabulary_section(statistics, published, decode or (lambda token: f"token {token}")),
        _coactivation_section(statistics),
    ]
    if earlier:
        sections.append(_saturation_section(trace, earlier, published))
    told = "Intervals are 95 % confidence intervals by the jackknife over groups of sequences."
    if len(trace.input_ids_ST) < 2:
        told = NO_INTERVALS
    return Page(title, told, sections)


def _json(figure: Interval[Any]) -> dict[str, Any]:
    known = np.isfinite(figure.half_width)
    half = figure.half_width.astype(object)
    half[~known] = None  # no JSON has a not-a-number
    return {"value": figure.value.tolist(), "half_width": half.tolist() if known.any() else None}


def _line(name: str, layers: Sequence[int], figure: Interval[Any], scale: float = 1.0) -> Series:
    value, half = figure.value * scale, np.nan_to_num(figure.half_width * scale)
    return Series(name, list(layers), value.tolist(), ((value - half).tolist(), (value + half).tolist()))


def _load_section(statistics: RoutingStatistics) -> Section:
    load, layers = statistics.load(statistics.top_k), statistics.layers
    rows: list[list[Cell]] = [
        [
            str(layer),
            *(float(load[name].value[place]) for name in ("max_over_mean", "min_over_mean", "normalized_entropy")),
            *(int(load[name].value[place]) for name in ("n_experts_over_2x", "n_experts_under_half", "n_experts_dead")),
        ]
        for place, layer in enumerate(layers)
    ]
    by_domain = statistics.load(statistics.top_k, True)["max_over_mean"]
    lines = [_line("all", layers, load["max_over_mean"])]
    if len(statistics.domains) > 1:
        lines += [
            Series(name, list(layers), by_domain.value[number].tolist())
            for number, name in enumerate(statistics.domains)
        ]
    blocks: list[Block] = [
        Table(
            ["layer", "highest", "lowest", "entropy", "above 2x", "below half", "unused"],
            rows,
            "Loads of experts over the mean of their layer",
        ),
        Chart(line_chart(lines, "layer", "highest load over the mean"), "The load of the most used expert. 1 is even."),
    ]
    dead = [str(layer) for place, layer in enumerate(layers) if load["n_experts_dead"].value[place]]
    if dead:
        blocks.append(Note(f"Experts without any token in layers {', '.join(dead)}.", "warning"))
    return Section("Load", blocks, "How evenly tokens are spread over experts.")


def _domain_section(statistics: RoutingStatistics) -> Section:
    figure, k = statistics.domain_specialization(statistics.top_k), statistics.top_k
    even, names = k / statistics.num_experts, [str(expert) for expert in range(statistics.num_experts)]
    blocks: list[Block] = []
    for place in _shown(statistics.layers):
        chart = heat_map(
            np.round(100 * figure.value[:, place], 1).tolist(),
            names,
            list(statistics.domains),
            "expert",
            "domain",
            "% of tokens",
        )
        half = 100 * figure.half_width[:, place]
        told = "There are too few sequences of these domains to tell intervals; trace more."
        if np.isfinite(half).any() and (widest := float(np.nanmax(half))) <= _NO_INTERVAL:
            told = f"The widest interval is ±{widest:.1f} points."
        blocks.append(
            Chart(
                chart,
                f"Layer {statistics.layers[place]}. Even: {even:.1%}. {told}",
            )
        )
    information = statistics.information(k)
    rows: list[list[Cell]] = [
        [
            str(layer),
            *(float(information[name][place]) for name in ("domain", "token") if name in information),
            _widest(information, place),
        ]
        for place, layer in enumerate(statistics.layers)
    ]
    columns = [
        "layer",
        *(f"bits of {name}" for name in ("domain", "token") if name in information),
        "largest divergence of domains (bits)",
    ]
    blocks.append(Table(columns, rows, "What an expert tells about the domain and the token it serves"))
    return Section("Domains", blocks, f"Share of each domain's tokens that have an expert among their {k}.")


def _widest(information: Mapping[str, Any], place: int) -> float:
    return float(np.nanmax(information["divergence"][place]))


def _vocabulary_section(statistics: RoutingStatistics, published: Path | None, decode: Callable[[int], str]) -> Section:
    layers, lines = list(statistics.layers), []
    blocks: list[Block] = []
    rows: list[list[Any]] = []
    for kind in statistics.occurrences:
        for k in statistics.ks:
            found = statistics.vocab_specialization(k, kind)
            if k == 1:
                value, half = 100 * found["macro"], 100 * np.nan_to_num(found["macro_half_width"])
                lines.append(
                    Series(_TITLES[kind], layers, value.tolist(), ((value - half).tolist(), (value + half).tolist()))
                )
            means = [100 * float(np.nanmean(found[name])) for name in ("macro", "macro_min10", "micro")]
            rows.append([_TITLES[kind], str(k), *means, int(found["ids"][0]), int(found["ids_min10"][0])])
    for kind in statistics.occurrences:
        lines += _published_vocabulary(published, kind)
    blocks.append(
        Chart(
            line_chart(lines, "layer", "specialization at k = 1 (%)"),
            "Mean over token ids; dashed: OLMoE-1B-7B as published.",
        )
    )
    columns = [
        "token",
        "k",
        "mean over ids",
        "ids with 10 or more",
        "weighted by occurrences",
        "ids",
        "of them 10 or more",
    ]
    blocks.append(
        Table(
            columns,
            rows,
            "Mean of layers, in percent. Ids that occur once count as fully specialized at k = 1, which lifts the first"
            " mean.",
        )
    )
    last = len(layers) - 1
    lists = vocab_by_expert(statistics.token_counts["input", 1][last], statistics.occurrences["input"])
    shown = [
        [str(expert), ", ".join(f"{decode(token)!r} {share:.0%}" for token, share in tokens[:_MOST_TOKENS])]
        for expert, tokens in enumerate(lists)
        if tokens
    ]
    caption = f"Layer {layers[last]}: input tokens with 10 or more occurrences"
    blocks.append(
        Details("Tokens of each expert", [Table(["expert", "tokens, and the share that goes to it"], shown, caption)])
    )
    return Section("Vocabulary", blocks, "Share of a token id's occurrences that go to its most frequent expert.")


def _coactivation_section(statistics: RoutingStatistics) -> Section:
    blocks: list[Block] = []
    if statistics.top_k == 1:
        return Section("Co-activation", [Note("One expert for each token: none are chosen together.")])
    for place in _shown(statistics.layers):
        figure = statistics.coactivation(statistics.layers[place])
        experts = most_coactivated(figure.value)
        names = [str(expert) for expert in experts]
        chart = heat_map(
            np.round(100 * figure.value[np.ix_(experts, experts)]).tolist(),
            names,
            names,
            "chosen too",
            "expert",
            "% of its tokens",
        )
        blocks.append(
            Chart(chart, f"Layer {statistics.layers[place]}: the experts that are chosen together most often.")
        )
    return Section(
        "Co-activation",
        blocks,
        "Of the tokens of one expert, the share that another one has too. All pairs of a token count.",
    )


def _saturation_section(trace: RoutingTrace, earlier: Mapping[str, RoutingTrace], published: Path | None) -> Section:
    blocks: list[Block] = []
    for k in sorted({1, trace.top_k}):
        lines = [_line(name, trace.layers, router_saturation(each, trace, k), 100.0) for name, each in earlier.items()]
        lines += _published_saturation(published, k)
        caption = (
            f"k = {k}. By chance it is {k / trace.num_experts:.1%}. Dashed: OLMoE-1B-7B as published, at shares of its"
            " pretraining."
        )
        blocks.append(Chart(line_chart(lines, "layer", "saturation (%)"), caption))
    return Section(
        "Saturation", blocks, "Share of each token's first k experts that an earlier checkpoint had chosen already."
    )


def _published_saturation(folder: Path | None, k: int) -> list[Series]:
    """The curves of OLMoE-1B-7B; those of its k = 8 for any k but 1."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in _rows(folder, "published_router_saturation.csv"):
        if int(row["k"]) == (1 if k == 1 else 8):
            found.setdefault(f"OLMoE at {row['percent_of_pretraining']} %", []).append(
                (float(row["layer"]), float(row["saturation_percent"]))
            )
    return [_dashed(name, points) for name, points in found.items()]


def _published_vocabulary(folder: Path | None, kind: Tokens) -> list[Series]:
    points = [
        (float(row["layer"]), float(row["vocab_specialization_percent"]))
        for row in _rows(folder, "published_vocab_specialization.csv")
        if row["model"] == "olmoe" and row["k"] == "1" and row["token_id_kind"] == _PUBLISHED_KINDS[kind]
    ]
    return [_dashed(f"OLMoE, {_TITLES[kind]}", points)] if points else []


def _dashed(name: str, points: Sequence[tuple[float, float]]) -> Series:
    return Series(name, [x for x, _ in points], [y for _, y in points], dashed=True)


def _rows(folder: Path | None, name: str) -> list[dict[str, str]]:
    if folder is None:
        return []
    if not (folder / name).exists():
        raise UserError(f"'{folder}' has no '{name}'.", "Name the folder of the published figures.")
    with open(folder / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _shown(layers: Sequence[int]) -> list[int]:
    """Places of the first, the middle and the last layer."""
    return sorted({0, len(layers) // 2, len(layers) - 1})
