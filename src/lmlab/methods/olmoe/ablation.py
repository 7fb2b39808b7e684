"""Design choices compared at toy scale: one YAML file gives the table of Muennighoff et al. 2024 (sections 3 and 4),
with seeds and significance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator

from lmlab import stats
from lmlab.config import Config, validate
from lmlab.data import Loader
from lmlab.errors import UserError, did_you_mean
from lmlab.fan_out import fan_out
from lmlab.files import read_json, sha256_json, write_json
from lmlab.methods.olmoe.byte_corpus import ByteCorpus, ByteWindows
from lmlab.models import ModelConfig, Transformer, token_log_probs
from lmlab.reports import Figure as FigureBlock
from lmlab.reports import Page, Section, Series, Table, bar_chart, line_chart
from lmlab.train import Trainer, TrainerConfig, language_model_step_by_domain, read_metrics, routed


class Choice(Config):
    """A comparison of two or more variants: one line of the table for each, against the first.

    Attributes:
        title: the question.
        variants: names of variants, the one to compare with first.
    """

    title: str
    variants: tuple[str, ...] = Field(min_length=2)


class AblationConfig(Config):
    """Which models are trained, how, and what is compared.

    Attributes:
        texts: a folder of JSON lines with `text` and `domain`.
        model: what all variants share; a variant's own keys replace these, those of its section `moe` one by one.
        variants: name -> what it changes of `model`; a key set to null is removed.
        optimizer: name -> what a variant changes of `trainer.optimizer`.
        choices: what is compared.
        seeds: each variant is trained with each, of its weights and its data; variants share both.
        seq_len: bytes of a row.
    """

    texts: Path
    model: dict[str, Any]
    variants: dict[str, dict[str, Any]] = Field(min_length=1)
    optimizer: dict[str, dict[str, Any]] = {}
    choices: tuple[Choice, ...] = ()
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    seq_len: PositiveInt = 256
    trainer: TrainerConfig

    @model_validator(mode="after")
    def _check(self) -> AblationConfig:
        named = [name for choice in self.choices for name in choice.variants] + list(self.optimizer)
        for name in named:
            if name not in self.variants:
                raise ValueError(f"there is no variant '{name}'. {did_you_mean(name, self.variants)}")
        return self

    def model_of(self, variant: str) -> ModelConfig:
        """The network of a variant.

        Raises:
            UserError: it is impossible.
        """
        changes = self.variants[variant]
        settings = {**self.model, **changes}
        if isinstance(self.model.get("moe"), dict) and isinstance(changes.get("moe"), dict):
            settings["moe"] = {**self.model["moe"], **changes["moe"]}
        return validate(
            ModelConfig, {key: value for key, value in settings.items() if value is not None}, f"variant '{variant}'"
        )

    def trainer_of(self, variant: str) -> TrainerConfig:
        """The loop of a variant."""
        changes = self.optimizer.get(variant, {})
        data = self.trainer.model_dump()
        data["optimizer"] = {**data["optimizer"], **changes}
        return validate(TrainerConfig, data, f"variant '{variant}'")


@dataclass(frozen=True)
class Job:
    """One training of an ablation."""

    config: AblationConfig
    variant: str
    seed: int
    directory: Path
    threads: int | None = None


def run_ablation(
    config: AblationConfig,
    directory: str | Path,
    workers: int = 1,
    only: Sequence[str] = (),
    told: Callable[[Job, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train every variant with every seed, and compare; what is finished is not done again, what was cut off goes on.

    Arguments:
        workers: trainings at once, each on its share of the cores.
        only: variants; by default all.
        told: called with each result as it comes.

    Returns:
        `results`: variant -> list of results by seed, of those that are finished; `comparisons`: rows of the table. The
        same is written to `results.json`, and as a page to `report.html`.
    """
    directory = Path(directory)
    for name in only:
        if name not in config.variants:
            raise UserError(f"There is no variant '{name}'. {did_you_mean(name, config.variants)}")
    for name in config.variants:
        config.model_of(name), config.trainer_of(name)
    threads = max(1, torch.get_num_threads() // workers) if workers > 1 else None
    jobs = [Job(config, name, seed, directory, threads) for seed in config.seeds for name in only or config.variants]
    for number, result in fan_out(train_variant, jobs, workers):
        if told:
            told(jobs[number], result)
    results: dict[str, list[dict[str, Any]]] = {}
    for name in config.variants:
        paths = [_place(Job(config, name, seed, directory)) / "result.json" for seed in config.seeds]
        results[name] = [read_json(path) for path in paths if path.exists()]
    found = {"results": results, "comparisons": [row for choice in config.choices for row in compare(choice, results)]}
    write_json(directory / "results.json", found)
    _page(config, found, directory).write(directory / "report.html")
    return found


def train_variant(job: Job) -> dict[str, Any]:
    """Train one variant with one seed, from its newest checkpoint if there is one; return its figures."""
    place = _place(job)
    if (place / "result.json").exists():
        result: dict[str, Any] = read_json(place / "result.json")
        return result
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    config, loop, corpus = (
        job.config.model_of(job.variant),
        job.config.trainer_of(job.variant),
        ByteCorpus(job.config.texts),
    )
    steps = loop.num_steps(job.config.seq_len)
    if steps is None:
        raise UserError("trainer.epochs: rows are drawn at random, so give the length in steps or tokens.")
    rows = ByteWindows(corpus, job.config.seq_len, steps * loop.batch_size, job.seed)
    loader = Loader(rows, loop.batch_size, job.seed, shuffle=False)
    step = routed(language_model_step_by_domain(corpus.domains), config)
    model = Transformer(config).initialize(job.seed)
    trainer = Trainer(model, step, loader, loop, place, flops_per_token=None, tokens_per_row=job.config.seq_len)
    summary = trainer.fit()
    figures = measure(model, corpus, job.config.seq_len)
    parameters = {"parameters": config.num_parameters(), "active_parameters": config.num_parameters(active=True)}
    result = {"variant": job.variant, "seed": job.seed, **figures, **parameters, "seconds": summary["seconds"]}
    write_json(place / "result.json", result)
    return result


@torch.no_grad()
def measure(model: Transformer, corpus: ByteCorpus, length: int) -> dict[str, Any]:
    """Validation loss in nats a byte, in the mean of domains and by domain, and the highest expert load of each layer
    over its mean.
    """
    model.eval()
    ids_BT, domains_B = corpus.validation_windows(length)
    labels_BT = torch.cat((ids_BT[:, 1:], torch.full_like(ids_BT[:, :1], -100)), 1)
    losses, counts = [], []
    for ids, labels in zip(ids_BT.split(16), labels_BT.split(16), strict=True):
        output = model(ids, logits="none")
        losses.append(
            -token_log_probs(output.hidden_BTD, model.head_weight_VD, labels, soft_cap=model.config.logit_soft_cap).sum(
                1
            )
            / (length - 1)
        )
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


def _place(job: Job) -> Path:
    """Where a training is: changed settings have another place."""
    settings = [
        job.config.model_of(job.variant).model_dump(mode="json"),
        job.config.trainer_of(job.variant).model_dump(mode="json"),
        job.config.seq_len,
    ]
    return job.directory / f"{job.variant}-{sha256_json([settings, str(job.config.texts)])[:8]}" / f"seed-{job.seed}"


def _page(config: AblationConfig, found: Mapping[str, Any], directory: Path) -> Page:
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
        ["variant", "parameters", "active", "seeds", "loss (nats a byte)", "deviation", "highest load"],
        rows,
        "Validation, mean of domains",
    )
    bars = bar_chart(
        list(results), {"loss": [float(np.mean(each)) for each in losses.values()]}, None, "nats a byte", None
    )
    compared = [
        [row["choice"], row["variant"], row["against"], row["difference"], _interval(row["interval"]), row["p"]]
        for row in found["comparisons"]
    ]
    curves = []
    for name, each in results.items():
        logged = read_metrics(_place(Job(config, name, each[0]["seed"], directory)) / "metrics.jsonl")
        key = "task_loss" if any("task_loss" in row for row in logged) else "loss"
        curves.append(Series(name, [row["step"] for row in logged], [row[key] for row in logged]))
    sections = [
        Section("Variants", [table, FigureBlock(bars, "Validation loss, mean over seeds.")]),
        Section(
            "Choices",
            [Table(["choice", "variant", "against", "difference", "95 % interval", "p"], compared)],
            "Differences of validation loss, seed by seed; p is that of a paired t-test.",
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
    return Page("Design choices", f"{len(results)} variants, {len(config.seeds)} seeds", sections)


def _deviation(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _load(results: Sequence[Mapping[str, Any]]) -> str:
    loads = [value for each in results for value in each["max_load"]]
    return f"{min(loads):.2f}-{max(loads):.2f}" if loads else "-"


def _interval(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}"
