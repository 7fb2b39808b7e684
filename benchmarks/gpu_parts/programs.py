"""The paper's grid of Transformer Programs, and larger problems: accuracy of the programs and seconds.

Each row trains 16 seeds of a shape as one batch of matrices, for as many epochs as its share of the time allows, stops
the seeds that fall behind, and exports the best one's program, which is compared with its network on all splits. First
come the published sizes of all seven tasks, with decoupled choices and with the paper's, then larger vocabularies and
lengths with tables and with families of predicates, then the rest of the grid.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from itertools import product
from typing import Any

from gpu_parts.session import Session
from lmlab.methods.transformer_programs import TrainSettings
from lmlab.methods.transformer_programs.analysis.verify import verify
from lmlab.methods.transformer_programs.network.convert import to_program
from lmlab.methods.transformer_programs.tasks.load import load_data
from lmlab.methods.transformer_programs.training.fit import fit, spec_of

_TABLE = "programs trained as a grid"
_SHAPE = ("num_layers", "cat_heads", "num_heads", "cat_mlps", "num_mlps")
_PUBLISHED = {  # as _SHAPE
    "reverse": (3, 4, 4, 1, 1), "hist": (1, 2, 2, 1, 1), "double_hist": (3, 2, 2, 1, 1), "sort": (3, 4, 4, 2, 2),
    "most_freq": (3, 4, 4, 2, 2), "dyck1": (3, 4, 4, 1, 1), "dyck2": (3, 2, 2, 2, 2),
}  # fmt: skip
_GRID = [(layers, heads, heads, mlps, mlps) for layers, heads, mlps in product((2, 3), (2, 4), (1, 2))]
_HARDER = ("reverse", "double_hist", "sort", "most_freq")
_SIZES = ((8, 16), (16, 16))
_PAPER = {"sampling": "gumbel_soft", "tau_end": 0.01}
_TRIAL = 12  # steps by which the time of one is measured
_MOST_EPOCHS = 250.0  # the paper's


def _jobs() -> Iterator[tuple[float, str, tuple[int, ...], dict[str, Any]]]:
    """Worth, task, shape and other settings."""
    for task, shape in _PUBLISHED.items():
        yield 6.0, task, shape, {}
        yield 3.0, task, shape, _PAPER
    for task, (words, length), predicates in product(_HARDER, _SIZES, ("families", "table")):
        settings = {"vocab_size": words, "max_length": length, "predicates": predicates}
        yield 4.0, task, _PUBLISHED[task], settings
    for task, shape in product(_PUBLISHED, _GRID):
        if shape != _PUBLISHED[task]:
            yield 1.0, task, shape, {}


def run(session: Session) -> None:
    """Job by job, each with its share of what is left."""
    jobs = [job for job in _jobs() if not session.only or any(word in job[1] for word in session.only)]
    if session.tiny:
        jobs = jobs[:2]
    for number, (worth, task, shape, changes) in enumerate(jobs):
        share = (session.left() - 5) * worth / sum(each[0] for each in jobs[number:])
        about = {"task": task, "shape": "/".join(map(str, shape)), **changes}
        if not session.has(" ".join(map(str, about.values())), 3.0):
            continue
        with session.attempt(_TABLE, about):
            session.record.row(_TABLE, {**about, **_train(session, task, shape, changes, share)})


def _train(
    session: Session, task: str, shape: tuple[int, ...], changes: dict[str, Any], seconds: float
) -> dict[str, Any]:
    chosen: dict[str, Any] = {
        # fitting sixteen classifiers again would take seconds on the processor, and a job has few
        "seeds": 16, "halvings": 2, "judge_by": "loss", "batch_size": 512, "sampling": "decoupled",
        "gradient_tau": 1.0, "tau_end": 0.1,
        "evaluations": 1, "checkpoint_every": 10**9,
        "device": session.device.type, **dict(zip(_SHAPE, shape, strict=True)), **changes,
    }  # fmt: skip
    if session.tiny:
        chosen |= {"seeds": 4, "size": 300, "batch_size": 64, "d_mlp": 8}
    settings = TrainSettings(task=task, **chosen)
    data = load_data(settings)
    spec = spec_of(settings, data)
    per_epoch = -(-len(data.train) // settings.batch_size)
    with tempfile.TemporaryDirectory() as trial, tempfile.TemporaryDirectory() as directory:
        start = time.perf_counter()
        # without halving all seeds are computed, so that the estimate is one from above
        few = settings.model_copy(update={"epochs": _TRIAL / per_epoch, "polish": 0, "halvings": 0})
        one = fit(spec, few, data, trial).summary["seconds"] / _TRIAL
        seconds -= 2 * (time.perf_counter() - start)  # the trial, and measuring, polishing and comparing
        steps = 2 * per_epoch if session.tiny else max(_TRIAL, int(0.9 * seconds / one))
        epochs = min(_MOST_EPOCHS, steps / per_epoch)
        start = time.perf_counter()
        fitted = fit(spec, settings.model_copy(update={"epochs": epochs}), data, directory)
        took = time.perf_counter() - start
    model = fitted.model.cpu()
    best = fitted.seeds[fitted.best]
    tokens = [tokens for part in (data.valid, data.test) if part for tokens, _ in part.examples]
    tokens += [tokens for tokens, _ in data.train.examples]
    report = verify(model, to_program(model, fitted.best, tokens), tokens, fitted.best)
    near = sum(row["valid_accuracy"] >= best["valid_accuracy"] - 0.01 for row in fitted.seeds)
    return {
        "seeds": settings.seeds, "epochs": epochs, "steps": round(epochs * per_epoch), "s": took,
        "ms a step": 1000 * took / max(1.0, epochs * per_epoch), "test %": f"{100 * best['test_accuracy']:.2f}",
        "near": near, "gap": best["soft_gap"], "places compared": report.places,
        "": "" if report.equal else "DIFFERS",
    }  # fmt: skip
