"""Factors of rotary frequencies for a longer window, one for each pair of dimensions, found by search.

After LongRoPE (Ding et al. 2024) and LongRoPE2 (Shang et al. 2025): candidates rise from the fast pairs to the slow
ones and are judged by how probable the right answers are at the new length, since most other tokens are told by what
stands near them. What is found is stored as `rope_scaling` of the type `longrope`, whose first list is all ones: texts
up to the old window are read exactly as before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.evals import Evaluator
from lmlab.evals.rows import RowFile
from lmlab.files import sha256_json, write_json
from lmlab.methods.prolong.answered import Answered, answered
from lmlab.methods.prolong.config import FactorSettings
from lmlab.models import (
    IGNORE,
    ModelConfig,
    RopeScaling,
    Transformer,
    WindowConfig,
    extended_theta,
    label_log_probs,
    rotary_frequencies,
    save_pretrained,
    weights_fingerprint,
    with_window,
)
from lmlab.progress import progress
from lmlab.runs import Model

Factors = tuple[float, ...]
ROWS, FOUND = "candidates.jsonl", "factors.json"
_PARENTS = 6  # fewer let one candidate take over early, more keep losing ones
_MUTATION = 0.25  # standard deviation of a change, in logarithms
_DIGITS = 6  # decimals of a factor: candidates that differ by less are one


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Attributes:
        factors: by which the frequencies of texts beyond the old window are divided.
        nll: of a token of an answer, in nats, by the name of the rule: on the contexts that were searched on, and on
            others. `searched` is the best candidate.
        candidates: how many were tried.
        from_rule: the rule that the best candidate is, if the search found nothing better than where it began.
    """

    factors: Factors
    nll: Mapping[str, float]
    heldout_nll: Mapping[str, float]
    candidates: int
    from_rule: str | None = None


def search_factors(
    model: Transformer,
    tokenizer: Tokenizer,
    settings: FactorSettings,
    directory: Path | None = None,
    texts: Sequence[Answered] | None = None,
    others: Sequence[Answered] | None = None,
) -> Found:
    """Search factors for the window `settings.to`. The model is left as it was.

    Arguments:
        directory: keeps what every candidate has reached, so that a search that was stopped goes on.
        texts, others: of one's own, to search by and to check what was found by, in place of the suite's tasks: for a
            model that knows other questions than those. Both or none.

    Raises:
        UserError: the model has no rotary positions or scales them already, the window does not grow, or no question
            fits it.
    """
    before = model.config
    _check(before, settings.to)
    if texts is None or others is None:
        texts, others = (
            answered(tokenizer, settings.tasks, settings.to, settings.contexts, settings.questions, seed)
            for seed in (2 * settings.seed, 2 * settings.seed + 1)
        )
    known = _Known(directory, before, weights_fingerprint(model), settings, texts)

    def nll_of(factors: Factors, asked: Sequence[Answered]) -> float:
        model.config = with_factors(before, settings.to, factors)
        return _nll(model, asked)

    rules = known_factors(before, settings.to)
    training = model.training
    model.eval()
    try:
        with progress("factors", settings.candidates, "candidates") as advance:

            def measured(factors: Factors) -> float:
                advance()
                return known.nll(factors, lambda: nll_of(factors, texts))

            ranked = _evolve(list(rules.values()), measured, settings)
        known.finish()
        best = ranked[0][1]
        values = {factors: value for value, factors in ranked}
        nll = {name: values[factors] for name, factors in rules.items()}
        held = {name: nll_of(factors, others) for name, factors in (rules | {"searched": best}).items()}
    finally:
        model.config = before
        model.train(training)
    same = next((name for name, factors in rules.items() if factors == best), None)
    return Found(best, nll | {"searched": ranked[0][0]}, held, len(ranked), same)


def extend_by_search(place: Model, settings: FactorSettings, device: str, precision: str, directory: Path) -> Found:
    """Search factors for a model, and write it with them as `model` in a directory, beside what was tried.

    Raises:
        UserError: as in `search_factors`; or the model is none of lmlab's.
    """
    evaluator = Evaluator.load(place, device, precision)
    model = evaluator.model
    if model is None:
        raise UserError(f"A search needs a model of lmlab, and this one runs by {evaluator.scorer.description}.")
    found = search_factors(model, evaluator.tokenizer, settings, directory)
    model.config = with_factors(model.config, settings.to, found.factors)
    _write(model, evaluator.tokenizer, place, directory / "model")
    write_json(directory / FOUND, asdict(found))
    return found


def extend_untrained(place: Model, window: WindowConfig, directory: Path) -> ModelConfig:
    """Write a model with another window, and nothing learned: what a rule for its rotary positions gives by itself.

    Raises:
        UserError: the model is none of lmlab's, has no rotary positions, or scales them already; or something stands in
            the directory; or the window is no longer.
    """
    if directory.exists() and any(directory.iterdir()):
        raise UserError(f"'{directory}' is there already.", "Name another directory with --out.")
    _check_longer(place.config, window.max_seq_len)  # YaRN by a factor below 1 is none
    config = with_window(place.config, window)  # which refuses what cannot be, before anything is loaded
    evaluator = Evaluator.load(place, "cpu", "fp32")
    if evaluator.model is None:
        raise UserError(f"The model runs by {evaluator.scorer.description}, and not by lmlab.")
    evaluator.model.config = config
    _write(evaluator.model, evaluator.tokenizer, place, directory)
    return config


def _write(model: Transformer, tokenizer: Tokenizer, place: Model, written: Path) -> None:
    if place.form == "directory":
        save_pretrained(model, written, None, companions=place.path)
    else:
        ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
        save_pretrained(model, written, None, tokens=ends)
    tokenizer.save(written, model.config.max_seq_len)


def with_factors(config: ModelConfig, window: int, factors: Factors) -> ModelConfig:
    """A model's configuration with a longer window, beyond the old one of which frequencies are divided by these."""
    scaling = RopeScaling(
        type="longrope",
        factor=window / config.max_seq_len,
        original_max_seq_len=config.max_seq_len,
        short_factor=(1.0,) * len(factors),
        long_factor=factors,
        attention_factor=1.0,  # another one would change short texts too
    )
    return with_window(config, WindowConfig(max_seq_len=window, rope_scaling=scaling))


def known_factors(config: ModelConfig, window: int) -> dict[str, Factors]:
    """What the rules without a search would divide the frequencies by."""
    times = window / config.max_seq_len
    plain = rotary_frequencies(config)
    yarn = RopeScaling(type="yarn", factor=times, original_max_seq_len=config.max_seq_len)
    configs = {"unchanged": config, "yarn": config.model_copy(update={"rope_scaling": yarn})}
    for rule in ("auto", "auto-ntk"):
        theta = extended_theta(config.rope_theta, config.max_seq_len, window, config.rotary_dim, rule)
        configs[rule] = config.model_copy(update={"rope_theta": theta})
    found = {name: _rounded((plain / rotary_frequencies(each)).numpy()) for name, each in configs.items()}
    return found | {"interpolated": (float(times),) * len(plain)}


def _check(config: ModelConfig, window: int) -> None:
    if config.positions != "rotary" or config.rotary_dim < 2:
        raise UserError(f"The model has {config.positions} positions, and no rotary frequencies.")
    if config.rope_scaling is not None:
        raise UserError(
            f"The model's positions are scaled already (rope_scaling {config.rope_scaling.type}).",
            "Search from the model that it was made of.",
        )
    _check_longer(config, window)


def _check_longer(config: ModelConfig, window: int) -> None:
    if window <= config.max_seq_len:
        raise UserError(
            f"The window of {window:,} tokens is no longer than the model's {config.max_seq_len:,}.", "Raise it."
        )


@torch.no_grad()
def _nll(model: Transformer, texts: Sequence[Answered]) -> float:
    """Of a token of an answer: the mean over texts, so that none counts more for having more answers."""
    device = model.embedding.weight.device
    means = []
    for text in texts:
        if not text.counted:
            continue
        ids = torch.tensor([text.ids], device=device)
        labels = torch.full_like(ids, IGNORE)
        places = torch.tensor(text.counted, device=device)
        labels[0, places - 1] = ids[0, places]
        means.append(-float(label_log_probs(model, ids, labels).sum()) / len(text.counted))
    return float(np.mean(means))


def _evolve(
    first: Sequence[Factors], measured: Callable[[Factors], float], settings: FactorSettings
) -> list[tuple[float, Factors]]:
    """Every candidate with its loss, the best first."""
    chance = np.random.default_rng(settings.seed)
    most = 2 * max(max(each) for each in first)
    tried: dict[Factors, float] = {}
    for each in list(dict.fromkeys(first))[: settings.candidates]:  # of few pairs, rules may give the same
        tried[each] = measured(each)
    while len(tried) < settings.candidates:
        parents = [each for each, _ in sorted(tried.items(), key=lambda pair: (pair[1], pair[0]))[:_PARENTS]]
        child = _child(chance, parents, most)
        if child not in tried:
            tried[child] = measured(child)
    return sorted((value, each) for each, value in tried.items())


def _child(chance: np.random.Generator, parents: Sequence[Factors], most: float) -> Factors:
    """Between two parents, and changed over a stretch of pairs; rising, and never below 1."""
    a, b = (np.log(parents[int(number)]) for number in chance.integers(len(parents), size=2))
    logs = a + chance.random() * (b - a)
    if chance.random() < 0.75 or not (a - b).any():  # the rest lies between its parents alone
        start, stop = sorted(chance.integers(len(logs) + 1, size=2))
        logs[start : stop + 1] += chance.normal(0, _MUTATION)
    return _rounded(np.exp(np.maximum.accumulate(logs)).clip(1, most))


def _rounded(factors: NDArray[Any]) -> Factors:
    return tuple(round(max(1.0, float(each)), _DIGITS) for each in np.maximum.accumulate(factors))


class _Known:
    """What candidates have reached, also in an earlier attempt."""

    def __init__(
        self,
        directory: Path | None,
        config: ModelConfig,
        weights: str,
        settings: FactorSettings,
        texts: Sequence[Answered],
    ) -> None:
        self._file = None if directory is None else RowFile(directory / ROWS)
        how = settings.model_dump(mode="json", exclude={"candidates"})
        self._how = sha256_json([config.model_dump(mode="json"), weights, how, [asdict(text) for text in texts]])
        self._rows = {} if self._file is None else self._file.done()
        self._asked: list[str] = []

    def nll(self, factors: Factors, measure: Callable[[], float]) -> float:
        name = sha256_json([self._how, factors])
        if name not in self._rows:
            self._rows[name] = {"id": name, "nll": measure(), "factors": factors}
            if self._file is not None:
                self._file.append(self._rows[name])
        self._asked.append(name)
        return float(self._rows[name]["nll"])

    def finish(self) -> None:
        if self._file is not None:
            self._file.finish(self._asked)
