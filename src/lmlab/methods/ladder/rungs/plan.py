"""Plans of ladders: which runs, how long, with which learning rate and batch (Bhagia et al. 2024, section 3 and
appendix).

A plan is data:

```yaml
name: tiny
sizes:
  16k: {num_layers: 2, d_model: 24, num_heads: 2, vocab_size: 512, max_seq_len: 128}
  32k: {num_layers: 2, d_model: 40, num_heads: 2, vocab_size: 512, max_seq_len: 128}
multiples: [1, 2, 5]
seq_len: 128
train: {tokens: runs/x/tokens, tokenizer: runs/x/tokenizer, questions: runs/x/questions}
```
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from lmlab.errors import UserError, did_you_mean
from lmlab.methods.ladder.config import OLMO_SIZES, LadderPlan
from lmlab.methods.ladder.tables.table import TOKENS_PER_PARAMETER
from lmlab.models import ModelConfig
from lmlab.train import TrainerConfig

_SMALL = 1e7  # parameters below which the rules for rates and batches do not hold
_HIGHEST_RATE = 6e-3  # where the published rule, which is for larger models, would rise without end
_FEWEST_STEPS = 500  # with fewer, the smallest runs are undertuned and bend the law
_LEVELS = 3  # of sizes and of lengths, for a law of both
_MANY = 8  # of which not all choices are tried


def olmo_size(name: str) -> ModelConfig:
    """A size of the published ladder, in the style of OLMo 2.

    Raises:
        UserError: there is no such size.
    """
    if name not in OLMO_SIZES:
        raise UserError(f"There is no size '{name}' in the published ladder. {did_you_mean(name, OLMO_SIZES)}")
    d_model, num_heads, num_layers, d_ff = OLMO_SIZES[name]
    shape = {"d_model": d_model, "num_heads": num_heads, "num_layers": num_layers, "d_ff": d_ff}
    # of OLMo 2's tokenizer
    padded = {"vocab_size": 100_278, "vocab_multiple": 128, "init": "truncated_normal", "output_init": "same"}
    return ModelConfig.model_validate({"preset": "OLMo-2-1B", **padded, **shape})


def size_of(model: ModelConfig) -> int:
    """N: parameters that a token uses, without the input embedding, with the head even where it is tied."""
    n = model.num_parameters(embedding=False, active=True)
    return n + (model.padded_vocab_size * model.d_model if model.tie_embeddings and model.num_labels is None else 0)


def flops_per_token(model: ModelConfig, seq_len: int) -> int:
    """F: training FLOPs of a token, 2 N + 4 L d T forward and 4 (N with the input embedding) + 8 L d T backward, as the
    paper counts them.
    """
    n = size_of(model)
    attention = model.num_layers * model.d_model * seq_len
    return 2 * n + 4 * attention + 4 * (n + model.padded_vocab_size * model.d_model) + 8 * attention


def parse_length(text: str | float, n: float) -> float:
    """Tokens of `1xC`, `100B`, `4T` or a number of tokens."""
    value = str(text).strip()
    try:
        if value.lower().endswith("xc"):
            tokens = TOKENS_PER_PARAMETER * float(value[:-2]) * n
        else:
            units = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
            tokens = float(value[:-1]) * units[value[-1].upper()] if value[-1:].upper() in units else float(value)
    except ValueError:
        raise UserError(f"'{text}' is not a length.", "Write 2xC, 100B, 4T, or a number of tokens.") from None
    if not tokens > 0 or not math.isfinite(tokens):
        raise UserError(f"'{text}' is not a length: it must be above 0, and finite.")
    return tokens


@dataclass(frozen=True)
class Rung:
    """One run: its shape, N, tokens D, training FLOPs, peak learning rate, rows of a batch, steps, seed, and its length
    as the plan gives it.
    """

    name: str
    size: str
    model: ModelConfig
    n: int
    tokens: float
    flops: float
    learning_rate: float
    batch_rows: int
    steps: int
    seed: int = 0
    length: str | float = ""


def rungs_of(plan: LadderPlan) -> list[Rung]:
    """All runs of a plan, the cheapest first."""
    found = []
    for size, shape in plan.sizes.items():
        model = shape or olmo_size(size)
        n = size_of(model)
        wanted = plan.lengths or tuple(f"{multiple:g}xC" for multiple in plan.multiples)
        for length in wanted:
            for seed in plan.seeds:
                label = f"{size}-{length}" + (f"-seed{seed}" if seed != plan.seeds[0] else "")
                rung = _rung(plan, label, size, model, n, parse_length(length, n), seed)
                found.append(replace(rung, length=length))
    names = [rung.name for rung in found]
    for name in plan.without:
        if name not in names:
            raise UserError(f"without: the plan has no run '{name}'. {did_you_mean(name, names)}")
    return sorted((rung for rung in found if rung.name not in plan.without), key=lambda rung: rung.flops)


def _rung(plan: LadderPlan, name: str, size: str, model: ModelConfig, n: int, tokens: float, seed: int) -> Rung:
    if plan.rule == "olmo":
        rate, rows = peak_learning_rate(n, plan.seq_len), batch_rows(n, plan.seq_len, tokens, plan.divisor)
    else:
        template = TrainerConfig.model_validate({"batch_size": 1, "steps": 1, **plan.trainer})
        rate, rows = template.optimizer.learning_rate, template.batch_size
    steps = max(1, round(tokens / (rows * plan.seq_len)))
    tokens = float(steps * rows * plan.seq_len)
    return Rung(name, size, model, n, tokens, tokens * flops_per_token(model, plan.seq_len), rate, rows, steps, seed)


def stage_of(plan: LadderPlan, rung: Rung) -> dict[str, Any]:
    """The rung as a stage `train` of a recipe."""
    trainer = dict(plan.trainer)
    if plan.rule == "olmo":
        trainer["optimizer"] = {
            "betas": [0.9, 0.95],
            "eps": 1e-8,
            "weight_decay": 0.1,  # here and below: as the published ladder was trained
            **trainer.get("optimizer", {}),
            "learning_rate": rung.learning_rate,
        }
        trainer.setdefault(
            "schedule",
            # as many as the model has parameters, where that leaves time
            {"kind": "cosine", "final_fraction": 0.1, "warmup_tokens": max(1, min(rung.n, int(rung.tokens) // 5))},
        )
    trainer |= {
        "steps": rung.steps,
        "batch_size": rung.batch_rows,
        "evaluate_every": math.ceil(rung.steps / plan.evaluations),
    }
    trainer.setdefault("checkpoint_every", max(1, rung.steps // 4))
    extra = {"z_loss": 1e-5, **plan.train} if plan.rule == "olmo" else plan.train
    return {
        "kind": "train",
        "seq_len": plan.seq_len,
        **extra,
        "model": rung.model.model_dump(mode="json"),
        "trainer": trainer,
    }


def peak_learning_rate(n: float, seq_len: int) -> float:
    """The peak rate of a size: 0.0047 (N / 1.08e8)^(-1/3), a quarter of it at 4,096 tokens; at most 0.006 below ten
    million parameters.
    """
    rate = 0.0047 * (n / 1.08e8) ** (-1 / 3) / (4 if seq_len >= 4096 else 1)
    return min(rate, _HIGHEST_RATE) if n < _SMALL else rate


def batch_rows(n: float, seq_len: int, tokens: float, divisor: int) -> int:
    """Rows of a batch: 160 (N / 1.08e8)^(2/3) at 2,048 tokens, half of it at 4,096, rounded to the divisor; small
    models take 500 steps at least.
    """
    if n < _SMALL:
        return max(1, int(tokens / _FEWEST_STEPS / seq_len))
    rows = 160 * (n / 1.08e8) ** (2 / 3) * 2048 / seq_len
    return max(1, divisor * max(1, round(rows / divisor)))


def fit_budget(plan: LadderPlan, budget: float) -> LadderPlan:
    """The plan with those of its runs that use up a budget of FLOPs best.

    Three sizes and three lengths at least are trained in all their combinations, since fewer do not determine a law of
    both: the dearest such part that can be paid. What is left is spent on single further runs, the dearest first.

    Raises:
        UserError: not even the cheapest three sizes and lengths can be paid.
    """
    if not 0 < budget < math.inf:
        raise UserError(f"A budget is a positive number of FLOPs, not {budget:g}.")
    lengths = plan.lengths or plan.multiples
    field = "lengths" if plan.lengths else "multiples"
    if len(plan.sizes) < _LEVELS or len(lengths) < _LEVELS:
        raise UserError(
            f"A plan of {len(plan.sizes)} sizes and {len(lengths)} lengths cannot be cut: a law of both needs three of"
            " each.",
            "Add sizes or lengths.",
        )
    rungs = plan.rungs()
    cost = {(rung.size, str(rung.length)): 0.0 for rung in rungs}
    for rung in rungs:
        cost[rung.size, str(rung.length)] += rung.flops
    best: tuple[float, set[tuple[str, str]]] | None = None
    least = math.inf
    for sizes, chosen in _parts(list(plan.sizes), [_label(each, field) for each in lengths]):
        part = {(size, length) for size in sizes for length in chosen}
        if not part <= {*cost}:
            continue  # one of its runs is given up
        total = sum(cost[each] for each in part)
        least = min(least, total)
        if total <= budget and (best is None or total > best[0]):
            best = (total, part)
    if best is None:
        raise UserError(
            f"A budget of {budget:.3g} FLOPs does not pay for three sizes and three lengths of this plan, which a law"
            f" of both needs: the cheapest cost {least:.3g}.",
            "Add smaller sizes or shorter lengths.",
        )
    spent, part = best
    for each in sorted({*cost} - part, key=lambda each: (-cost[each], each)):
        if spent + cost[each] <= budget:
            spent, part = spent + cost[each], {*part, each}
    kept = [length for length in lengths if any(_label(length, field) == each for _, each in part)]
    smaller = plan.model_copy(
        update={
            "sizes": {name: shape for name, shape in plan.sizes.items() if any(name == each for each, _ in part)},
            field: tuple(kept),
            "without": (),
        }
    )
    given_up = tuple(rung.name for rung in smaller.rungs() if (rung.size, str(rung.length)) not in part)
    return smaller.model_copy(update={"without": given_up})


def _parts(sizes: list[str], lengths: list[str]) -> Iterator[tuple[Sequence[str], Sequence[str]]]:
    """Choices of three sizes and three lengths or more, in the order given: all of them, or where they are too many
    those of neighbors.
    """

    def choices(values: list[str]) -> list[Sequence[str]]:
        if len(values) <= _MANY:
            return [part for count in range(_LEVELS, len(values) + 1) for part in combinations(values, count)]
        ends = range(_LEVELS, len(values) + 1)
        return [values[begin:end] for end in ends for begin in range(end - _LEVELS + 1)]

    return ((one, other) for one in choices(sizes) for other in choices(lengths))


def _label(length: Any, field: str) -> str:
    return str(length) if field == "lengths" else f"{length:g}xC"


def plan_rows(plan: LadderPlan, flops_per_second: float) -> list[Mapping[str, Any]]:
    """The runs for a table, with the hours of one device."""
    return [
        {
            "run": rung.name,
            "N": rung.n,
            "D": int(rung.tokens),
            "FLOPs": rung.flops,
            "learning rate": rung.learning_rate,
            "batch tokens": rung.batch_rows * plan.seq_len,
            "steps": rung.steps,
            "device hours": rung.flops / flops_per_second / 3600,
        }
        for rung in plan.rungs()
    ]
