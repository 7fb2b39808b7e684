"""How well a checkpoint's window can be extended: the same short training for every one, and what it recalls after it.

Of models with equal losses and short tasks some keep half of their recall in a longer window and some nearly all, by
norms, grouped heads, windows and the length that they were trained at; an early extension shows it (OlmPool, 2026).
Each checkpoint gets the base of its frequencies by the same rule and learns the right answers of contexts of the suite,
long ones and short ones, for a fixed number of tokens; then it is asked about others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.data import Loader, Tokenizer
from lmlab.errors import UserError
from lmlab.evals import Evaluator, ModelScorer
from lmlab.evals.long import Asking, LongSettings, read_suite_rows, score_over_contexts
from lmlab.files import read_mapping, write_json
from lmlab.hardware import select_device
from lmlab.methods.prolong.answered import Answered, answered
from lmlab.methods.prolong.config import ProbeSettings
from lmlab.methods.prolong.evaluate import INSTANCES, evaluate, instances_for
from lmlab.models import IGNORE, Transformer, WindowConfig, with_window
from lmlab.runs import Model
from lmlab.train import OptimizerConfig, ScheduleConfig, Trainer, TrainerConfig, language_model_step

PROBED, ASKED = "probe.json", "settings.json"
_WARMUP = 0.1  # of the steps, as in the paper


def probe_window(place: Model, settings: ProbeSettings, directory: Path, name: str | None = None) -> dict[str, Any]:
    """Extend a checkpoint for a short while and measure its recall; `probe.json` in `directory`. What was done before
    is not done again, and a training that was stopped goes on.

    Arguments:
        name: of the model in results, by default its path.

    Returns:
        `window`, before and after; `before`, recall within the old window, and `after`, by length: `score`, the share
        of answers all of whose tokens are the likeliest ones, with its 95 % interval over contexts (`low`, `high`),
        `token_accuracy` and `nll`; `reached`, the mean score of the lengths beyond the old window.

    Raises:
        UserError: the model has no rotary positions, or scales them already; or no question fits it; or the directory
            holds a probe with other settings.
    """
    model, tokenizer = place.load(select_device(settings.device)), place.tokenizer()
    old = model.config.max_seq_len
    new, called = settings.times * old, name or str(place.path)
    if model.config.positions != "rotary":
        raise UserError(f"'{called}' has {model.config.positions} positions, and no window that could be extended.")
    longer = with_window(model.config, WindowConfig(max_seq_len=new, rope_theta=settings.rope_theta))
    asked = settings.model_dump(mode="json", exclude={"device"})
    _check_settings(directory, asked)
    before = _recall(model, tokenizer, settings, [old], directory / "before", called)
    model.config = longer
    trainer = _trainer(model, tokenizer, settings, old, directory / "train")
    tokens = trainer.fit()["tokens"]
    after = _recall(model.eval(), tokenizer, settings, _lengths(old, settings.times), directory / "after", called)
    found = {
        "model": called,
        "window": [old, new],
        "tokenizer": tokenizer.fingerprint,
        "settings": asked,
        "tokens": tokens,
        "before": before,
        "after": after,
        "reached": float(np.mean([each["score"] for length, each in after.items() if int(length) > old])),
    }
    write_json(directory / PROBED, found)
    return found


def _check_settings(directory: Path, asked: dict[str, Any]) -> None:
    """Note what is asked for: a training that is there goes on, and must not pass for one with other settings."""
    path = directory / ASKED
    known = read_mapping(path) if path.exists() else asked
    if changed := [name for name in asked if known.get(name) != asked[name]]:
        raise UserError(f"'{directory}' holds a probe with another {', '.join(changed)}.", "Name another with --out.")
    write_json(path, asked)


def ranked(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Probes by what they have reached beyond their old windows, the best first; of equal ones the one to whom right
    answers are more probable.

    Raises:
        UserError: they have other windows, tokenizers or settings, so that they say nothing of each other.
    """
    for each in found[1:]:
        for key, called in (("window", "windows"), ("tokenizer", "tokenizers"), ("settings", "settings")):
            if each[key] != found[0][key]:
                raise UserError(
                    f"'{found[0]['model']}' and '{each['model']}' have other {called}, so that the recall of one says"
                    " nothing of the other.",
                    "Probe them apart.",
                )
    return sorted(found, key=lambda each: (-each["reached"], sum(cell["nll"] for cell in each["after"].values())))


def _lengths(old: int, times: int) -> list[int]:
    """The old window, twice, four times ... as much, and the new window."""
    doublings = [2**power for power in range(times.bit_length()) if 2**power < times]
    return [old * each for each in (*doublings, times)]


def _trainer(model: Transformer, tokenizer: Tokenizer, settings: ProbeSettings, old: int, directory: Path) -> Trainer:
    new = model.config.max_seq_len
    size = max(1, settings.batch_tokens // new)
    steps = -(-settings.tokens // (size * new))
    loop = TrainerConfig(
        steps=steps,
        batch_size=size,
        micro_batch_size=1,
        recompute_blocks=1,
        device=settings.device,
        precision=settings.precision,
        optimizer=OptimizerConfig(learning_rate=settings.learning_rate),
        schedule=ScheduleConfig(warmup_fraction=_WARMUP),
    )
    rows = AnsweredRows(tokenizer, settings, old, new, size * steps)
    loader = Loader(rows, size, settings.seed, shuffle=False)
    directory.mkdir(parents=True, exist_ok=True)
    return Trainer(model, language_model_step, loader, loop, directory, tokens_per_row=new)


def _recall(
    model: Transformer,
    tokenizer: Tokenizer,
    settings: ProbeSettings,
    lengths: list[int],
    directory: Path,
    name: str,
) -> dict[str, dict[str, float | None]]:
    """What a model recalls, by length."""
    built = LongSettings(
        tasks=settings.tasks,
        lengths=lengths,
        contexts=settings.contexts,
        questions=settings.questions,
        seed=2 * settings.seed,
    )
    file = instances_for(Asking(tokenizer), built, directory / INSTANCES)
    evaluator = Evaluator(ModelScorer(model, settings.precision), tokenizer, model)
    evaluate(evaluator, file, directory, model=name, mode="forced", controls=False)
    rows, found = read_suite_rows(directory), {}
    for length in lengths:
        chosen = [row for row in rows if row["length"] == length]
        if not chosen:
            raise UserError(f"No question of {', '.join(settings.tasks)} fits {length:,} tokens.", "Name other tasks.")
        scores = np.array([row["greedy"] for row in chosen])
        found[str(length)] = score_over_contexts(partial(_mean_of, scores), [row["context"] for row in chosen]) | {
            key: float(np.mean([row[key] for row in chosen])) for key in ("token_accuracy", "nll")
        }
    return found


def _mean_of(values: NDArray[np.float64], units: NDArray[np.int64]) -> float:
    return float(values[units].mean())


class AnsweredRows:
    """Rows of contexts whose right answers are learned: one long context, or as many short ones as fit.

    Arguments:
        short: tokens of the short contexts, at most.
        long: of the long ones, and of a row.
        count: of the rows.
    """

    def __init__(self, tokenizer: Tokenizer, settings: ProbeSettings, short: int, long: int, count: int) -> None:
        self.length = long
        num_long = max(1, round(settings.long_share * count))
        each = long // short
        seed, chance = 2 * settings.seed + 1, np.random.default_rng(settings.seed)  # none that is asked about

        def drawn(length: int, wanted: int) -> list[Answered]:
            contexts = -(-wanted // len(settings.tasks))
            found = answered(tokenizer, settings.tasks, length, contexts, settings.questions, seed) if wanted else []
            return [found[int(number)] for number in chance.permutation(len(found))][:wanted]

        near = drawn(short, each * (count - num_long))
        parts = [[text] for text in drawn(long, num_long)]
        parts += [near[start : start + each] for start in range(0, len(near), each)]
        self.rows = [parts[int(number)] for number in chance.permutation(len(parts))]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, NDArray[np.int64]]:
        row = {"input_ids": 0, "labels": IGNORE, "document_ids": -1}
        made = {name: np.full(self.length, fill, np.int64) for name, fill in row.items()}
        start = 0
        for number, text in enumerate(self.rows[index]):
            stop = start + len(text.ids)
            made["input_ids"][start:stop], made["document_ids"][start:stop] = text.ids, number
            counted = start + np.array(text.counted, np.int64)
            made["labels"][counted - 1] = made["input_ids"][counted]
            start = stop
        return made
