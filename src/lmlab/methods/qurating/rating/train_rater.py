"""Learning from judgments with the one trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmlab.config import influences
from lmlab.data import Batch, Loader, Tokenizer
from lmlab.distributed import from_main, world
from lmlab.files import read_mapping, sha256_json, write_json
from lmlab.judging import MISSING, Judgment
from lmlab.methods.qurating.config import RaterConfig
from lmlab.methods.qurating.rating.judgment_rows import EncodedGroup, JudgmentRows, encode_groups
from lmlab.methods.qurating.rating.loss import pair_loss
from lmlab.methods.qurating.rating.metrics import pair_metrics
from lmlab.methods.qurating.rating.rater import Rater
from lmlab.models import ModelConfig, Transformer, weights_fingerprint
from lmlab.runs import Model, one_job, require_same_work
from lmlab.train import (
    OptimizerConfig,
    StepOutput,
    Trainer,
    TrainerConfig,
    best_of,
    checkpoints,
    load_checkpoint,
    load_weights,
    whole_tensors,
)
from lmlab.words import counted

_FEW_STEPS = 10  # of an optimizer: fewer leave a network about where it was


@dataclass(frozen=True)
class TrainedRater:
    """A rater and how well it does on the judgments that it has not seen."""

    rater: Rater
    results: dict[str, Any]


def rater_step(confidence: float = 0.5, temperature: float = 1.0) -> Callable[[Any, Batch], StepOutput]:
    """The step function: Bradley-Terry terms of the kept labels of packed rows (`JudgmentRows`), their number, and the
    share that is right.
    """

    def step(model: Transformer, batch: Batch) -> StepOutput:
        difference_BPC = pair_differences(model, batch)
        labels_BPC = batch["labels"]
        total, count = pair_loss(difference_BPC, labels_BPC, confidence, temperature)
        known = labels_BPC != MISSING
        right = ((difference_BPC >= 0) == (labels_BPC >= 0.5)) & known
        return StepOutput(total, count.float(), {"accuracy": (right.sum(), known.sum())})

    return step


def pair_differences(model: Transformer, batch: Batch) -> torch.Tensor:
    """Score of the second text of each pair less that of the first, [B, P, C], in fp32."""
    out = model(batch["input_ids"], document_ids_BT=batch["document_ids"], scores_at_BN=batch["ends"])
    scores_BMC = out.scores_BC
    assert scores_BMC is not None
    index_BP2 = batch["pairs"]
    first, second = (
        scores_BMC.gather(1, index_BP2[..., side, None].expand(-1, -1, scores_BMC.shape[2])) for side in (0, 1)
    )
    return second - first


def split_groups(judgments: Sequence[Judgment], share: float, seed: int) -> tuple[list[Judgment], list[Judgment]]:
    """Training and held-out judgments: groups that have a document in common are on one side.

    Arguments:
        share: of the held-out side.
    """
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    names = [judgment.ids or judgment.texts for judgment in judgments]
    for members in names:
        for member in members[1:]:
            leader[find(member)] = find(members[0])
    parts: tuple[list[Judgment], list[Judgment]] = ([], [])
    for judgment, members in zip(judgments, names, strict=True):
        digest = blake2b(f"{seed}/{find(members[0])}".encode(), digest_size=8).digest()
        parts[int.from_bytes(digest, "little") < share * 2**64].append(judgment)
    return parts


def train_rater(
    judgments: Sequence[Judgment],
    criteria: Sequence[str],
    tokenizer: Tokenizer,
    config: RaterConfig,
    directory: str | Path,
    init: Model | str | Path | None = None,
    heldout: Sequence[Judgment] | None = None,
) -> TrainedRater:
    """Train a rater in a directory, going on from what an earlier attempt left there, and write it to `rater/`.

    Arguments:
        criteria: names of the scalars, in order.
        tokenizer: the model's; of `init` where that is given.
        init: a language model whose body the rater takes over.
        heldout: judgments to measure on, in place of a share of the others.

    Raises:
        NoConfidentPairs: there is nothing to learn for a criterion.
        UserError: the judgments lack a criterion, the batch does not fit the processes, or the directory is that of
            another rater, or another job is at it.
    """
    with one_job(directory, "--out"):
        return _train(judgments, criteria, tokenizer, config, Path(directory), init, heldout)


def _train(
    judgments: Sequence[Judgment],
    criteria: Sequence[str],
    tokenizer: Tokenizer,
    config: RaterConfig,
    directory: Path,
    init: Model | str | Path | None,
    heldout: Sequence[Judgment] | None,
) -> TrainedRater:
    train, valid = (
        (list(judgments), list(heldout))
        if heldout is not None
        else split_groups(judgments, config.validation, config.seed)
    )
    groups, dropped = encode_groups(train, criteria, tokenizer, config.max_tokens, config.confidence)
    rows = JudgmentRows(groups, config.row_tokens)
    valid_groups = encode_groups(valid, criteria, tokenizer, config.max_tokens, 0.0)[0] if valid else []
    start = init if init is None or isinstance(init, Model) else Model.find(init)
    model = _network(config, tokenizer, len(criteria), start)
    settings = _trainer_config(config, rows)
    now = {
        "criteria": list(criteria),
        "judgments": _digest(judgments),
        "heldout": None if heldout is None else _digest(heldout),
        "tokenizer": tokenizer.fingerprint,
        "start": None if start is None else weights_fingerprint(model),
        "settings": influences(config) | {"trainer": _asked_of_loop(config, settings)},
    }
    require_same_work(directory / "training.json", now, "training", "--out")
    where = world()
    loader = Loader(rows, settings.batch_size, config.seed, where.rank, where.size)
    step = rater_step(config.confidence, config.label_temperature)
    valid_rows = JudgmentRows(valid_groups, config.row_tokens) if valid_groups else None
    evaluate = None if valid_rows is None else (lambda trained: _evaluate(trained, valid_rows, config.confidence))
    trainer = Trainer(model, step, loader, settings, directory, evaluate)
    summary = trainer.fit()
    best = from_main(_best(directory, settings.keep_best))
    if best is not None:
        load_checkpoint(best, trainer.model)
    whole = Transformer(model.config)
    load_weights(whole, whole_tensors(trainer.model), str(directory))
    rater = Rater(whole, tokenizer, criteria, segment=config.max_tokens, device=settings.device, precision="fp32")
    results = {
        "training": summary,
        "groups": len(groups),
        "pairs": rows.num_pairs,
        "held_out_groups": len(valid_groups),
        "dropped": dropped,
    }
    results |= {
        "padding": rows.padding_fraction,
        "criteria": list(criteria),
        "tokens_read_per_second": summary["tokens_per_second"],
    }
    if valid_rows is not None:
        results["metrics"] = measure(rater, valid_groups, criteria)
    if summary["steps"] < _FEW_STEPS:
        results["warning"] = (
            f"The rater has learned from {counted(rows.num_pairs, 'pairs')} in {counted(summary['steps'], 'steps')},"
            f" {config.batch_pairs:,} pairs at a time, and is hardly another than before. Give a smaller batch_pairs,"
            " more epochs or more judgments."
        )
    if where.is_main:
        rater.save(directory / "rater")
        write_json(directory / "rater.json", results)
    return TrainedRater(rater, results)


def _asked_of_loop(config: RaterConfig, settings: TrainerConfig) -> dict[str, Any]:
    """What the loop was told and what has an influence."""
    return {name: value for name, value in influences(settings).items() if name in config.trainer}


def _digest(judgments: Sequence[Judgment]) -> str:
    """What tells judgments from others."""
    parts = [
        [each.texts, {name: labels.tolist() for name, labels in each.average.items()}, list(each.ids)]
        for each in judgments
    ]
    return sha256_json(parts)


def measure(rater: Rater, groups: Sequence[EncodedGroup], criteria: Sequence[str]) -> dict[str, Any]:
    """Accuracy, cross-entropy and calibration of a rater on judged groups; see `pair_metrics`."""
    scores = rater.score_ids([ids for group in groups for ids in group.ids]).astype(np.float64)
    differences, labels, place = [], [], 0
    for group in groups:
        own = scores[place : place + len(group.ids)]
        place += len(group.ids)
        differences.append(own[group.pairs[:, 1]] - own[group.pairs[:, 0]])
        labels.append(group.labels)
    votes = max((group.votes for group in groups), default=0)
    return pair_metrics(np.concatenate(differences), np.concatenate(labels), criteria, votes)


def _network(config: RaterConfig, tokenizer: Tokenizer, num_labels: int, init: Model | None) -> Transformer:
    if init is not None:
        return init.load(num_labels=num_labels, seed=config.seed)
    size = {
        "max_seq_len": config.max_tokens,
        "vocab_size": tokenizer.vocab_size,
        "num_labels": num_labels,
        **config.size,
    }
    return Transformer(ModelConfig(**size)).initialize(config.seed)


def _trainer_config(config: RaterConfig, rows: JudgmentRows) -> TrainerConfig:
    size = world().size
    batch = max(1, round(config.batch_pairs * len(rows) / rows.num_pairs / size)) * size
    steps = max(1, round(config.epochs * len(rows) / batch))
    given: dict[str, Any] = {
        "steps": steps,
        "batch_size": batch,
        "optimizer": (
            OptimizerConfig(name="adamw", learning_rate=config.lr, weight_decay=config.weight_decay).model_dump()
        ),
        "schedule": config.schedule.model_dump(),
        "evaluate_every": max(1, steps // config.evaluations),
        "keep_best": "heldout_error",
        "log_every": max(1, steps // 50),
    }
    return TrainerConfig(**(given | config.trainer))


def _evaluate(model: Transformer, rows: JudgmentRows, confidence: float) -> dict[str, float]:
    """Error and cross-entropy on held-out rows."""
    step = rater_step(confidence)
    device = next(model.parameters()).device
    loss = count = right = known = 0.0
    for number in range(len(rows)):
        output = step(model, {key: torch.from_numpy(value)[None].to(device) for key, value in rows[number].items()})
        loss, count = loss + float(output.loss_sum), count + float(output.count)
        right, known = right + float(output.sums["accuracy"][0]), known + float(output.sums["accuracy"][1])
    return {"heldout_loss": loss / max(1.0, count), "heldout_error": 1 - right / max(1.0, known)}


def _best(directory: Path, key: str | None) -> Path | None:
    found = {path: read_mapping(path / "state.json") for path in checkpoints(directory / "checkpoints")}
    return best_of(found, key) if key else None
