"""Design choices compared at toy scale: one YAML file gives the table of Muennighoff et al. 2024 (sections 3 and 4),
with seeds and significance. Every training is a run of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmlab import stats
from lmlab.config import influences
from lmlab.data import Loader
from lmlab.errors import UserError
from lmlab.files import sha256_json
from lmlab.methods.olmoe.byte_corpus import ByteCorpus, ByteWindows
from lmlab.methods.olmoe.config import AblationConfig, ByteTrainingConfig, Choice
from lmlab.models import Transformer
from lmlab.reports import Figure as FigureBlock
from lmlab.reports import Section, Series, Table, bar_chart, line_chart
from lmlab.runs import PlannedRun, RunOutcome, StageRecord, is_finished, run_many
from lmlab.train import Trainer, language_model_step_by_domain, read_metrics, routed

STAGE = "model"
"""What the stage is called in the run of a variant."""


def run_ablation(
    config: AblationConfig, directory: str | Path, told: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Train every variant with every seed (`run_many`), and compare; what is finished is not done again, what was cut
    off goes on.

    Arguments:
        told: called with each result as it comes.

    Returns:
        `results`: variant -> list of results by seed, of those that are finished; `comparisons`: rows of the table.
    """
    directory = Path(directory)
    for name in config.variants:
        config.model_of(name), config.trainer_of(name)
    runs = [_run(config, name, seed) for seed in config.seeds for name in config.only or config.variants]

    def tell(outcome: RunOutcome) -> None:
        if told is not None and outcome.results is not None:
            told({**outcome.settings, **outcome.results[STAGE]})

    run_many(runs, directory, config.workers, config.backend, config.gpus, told=tell)
    results: dict[str, list[dict[str, Any]]] = {}
    for name in config.variants:
        places = [directory / _run(config, name, seed).name / STAGE for seed in config.seeds]
        results[name] = [
            {"variant": name, "seed": seed, **StageRecord.finished_in(place).results}
            for seed, place in zip(config.seeds, places, strict=True)
            if is_finished(place)
        ]
    return {"results": results, "comparisons": [row for choice in config.choices for row in compare(choice, results)]}


def _run(config: AblationConfig, variant: str, seed: int) -> PlannedRun:
    """One training as a recipe. Changed settings have another directory, so that those of before are kept."""
    model = config.model_of(variant).model_dump(mode="json")
    trainer = config.trainer_of(variant).model_dump(mode="json")
    texts = str(Path(config.texts).resolve())
    stage = {"kind": "train_bytes", "texts": texts, "model": model, "seq_len": config.seq_len, "trainer": trainer}
    digest = sha256_json([influences(config.trainer_of(variant)), model, config.seq_len, texts])[:8]
    name = f"{variant}-{digest}"
    recipe = {"name": name, "seed": seed, "stages": {STAGE: stage}}
    return PlannedRun(f"{name}/seed-{seed}", recipe, {"variant": variant, "seed": seed})


def train_on_bytes(config: ByteTrainingConfig, directory: str | Path, seed: int) -> dict[str, Any]:
    """Train one model, from its newest checkpoint in the directory if there is one; its figures."""
    directory = Path(directory)
    corpus = ByteCorpus(Path(config.texts))
    steps = config.trainer.num_steps(config.seq_len)
    if steps is None:
        raise UserError("trainer.epochs: rows are drawn at random, so give the length in steps or tokens.")
    rows = ByteWindows(corpus, config.seq_len, steps * config.trainer.batch_size, seed)
    loader = Loader(rows, config.trainer.batch_size, seed, shuffle=False)
    step = routed(language_model_step_by_domain(corpus.domains), config.model)
    model = Transformer(config.model).initialize(seed)
    trainer = Trainer(
        model, step, loader, config.trainer, directory, flops_per_token=None, tokens_per_row=config.seq_len
    )
    summary = trainer.fit()
    figures = measure(model, corpus, config.seq_len)
    sizes = {
        "parameters": config.model.num_parameters(),
        "active_parameters": config.model.num_parameters(active=True),
    }
    return {**figures, **sizes, "seconds": summary["seconds"]}


@torch.no_grad()
def measure(model: Transformer, corpus: ByteCorpus, length: int) -> dict[str, Any]:
    """Validation loss in nats a byte, in the mean of domains and by domain, and the highest expert load of each layer
    over its mean.
    """
    model.eval()
    ids_BT, domains_B = corpus.validation_windows(length)
    labels_BT = torch.cat((ids_BT[:, 1:], torch.full_like(ids_BT[:, :1], -100)), 1)
    losses, counts = [], []
    for ids, labels in zip(ids_BT.split(16), labels_BT.split(16), strict=True):  # windows: more take memory for logits
        output = model(ids, logits="none")
        losses.append(-model.log_probs_of(output.hidden_BTD, labels).sum(1) / (length - 1))
        counts.append([each.tokens_per_expert_E for each in output.routers])
    loss_B = torch.cat(losses)
    by_domain = {name: float(loss_B[domains_B == number].mean()) for number, name in enumerate(corpus.domains)}
    loads = [torch.stack(layer).sum(0) for layer in zip(*counts, strict=True)]
    return {
        "loss": float(np.mean(list(by_domain.values()))),
        "loss_by_domain": by_domain,
        "max_load": [float(load.max() / load.float().mean()) for load in loads],
    }


def compare(choice: Choice, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Each variant of a choice against its first, seed by seed: the mean difference, its 95 % interval and p of a
    paired t-test.

    With one common seed there is a difference and no significance.
    """
    base = {each["seed"]: each["loss"] for each in results[choice.variants[0]]}
    rows = []
    for name in choice.variants[1:]:
        differences = np.array([each["loss"] - base[each["seed"]] for each in results[name] if each["seed"] in base])
        row: dict[str, Any] = {
            "choice": choice.title,
            "variant": name,
            "against": choice.variants[0],
            "seeds": len(differences),
        }
        row |= {"difference": float(differences.mean()) if len(differences) else None, "interval": None, "p": None}
        if len(differences) > 1:
            row["interval"] = list(stats.t_interval(differences).bounds)
            row["p"] = stats.t_test(differences)
        rows.append(row)
    return rows


def ablation_sections(config: AblationConfig, found: Mapping[str, Any], directory: Path) -> list[Section]:
    """The tables of variants and choices, and curves of the first seed, from what `run_ablation` has left."""
    results = {name: each for name, each in found["results"].items() if each}
    losses = {name: [result["loss"] for result in each] for name, each in results.items()}
    rows = [
        [
            name,
            each[0]["parameters"],
            each[0]["active_parameters"],
            len(each),
            float(np.mean(losses[name])),
            _deviation(losses[name]),
            _load(each),
        ]
        for name, each in results.items()
    ]
    table = Table(
        ["variant", "parameters", "active", "seeds", "loss (nats a byte)", "SD of seeds", "highest load"],
        rows,
        "Validation, mean of domains; loads are those of an expert over the mean.",
    )
    bars = bar_chart(
        list(results),
        {"loss": [float(np.mean(each)) for each in losses.values()]},
        {"loss": [_deviation(each) or 0.0 for each in losses.values()]},
        "nats a byte",
        None,
    )
    compared = [
        [row["choice"], row["variant"], row["against"], row["difference"], _interval(row["interval"]), row["p"]]
        for row in found["comparisons"]
    ]
    curves = []
    for name, each in results.items():
        logged = read_metrics(directory / _run(config, name, each[0]["seed"]).name / STAGE / "metrics.jsonl")
        key = "task_loss" if any("task_loss" in row for row in logged) else "loss"
        curves.append(Series(name, [row["step"] for row in logged], [row[key] for row in logged]))
    return [
        Section(
            "Variants", [table, FigureBlock(bars, "Validation loss, mean over seeds with their standard deviation.")]
        ),
        Section(
            "Choices",
            [Table(["choice", "variant", "against", "difference", "95 % interval", "p"], compared)],
            "Differences of validation loss in nats a byte, seed by seed; p is that of a paired t-test.",
        ),
        Section(
            "Learning",
            [
                FigureBlock(
                    line_chart(curves, "step", "training loss (nats a byte)"), "Training loss of the first seed."
                )
            ],
        ),
    ]


def _deviation(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _load(results: Sequence[Mapping[str, Any]]) -> str:
    loads = [value for each in results for value in each["max_load"]]
    return f"{min(loads):.2f} to {max(loads):.2f}" if loads else "-"


def _interval(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}"
