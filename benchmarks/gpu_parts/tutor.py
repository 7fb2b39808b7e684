"""Tutors at 8K tokens: answers about chapters, and tuning on dialogues. Meant for eight minutes.

Open book: four questions about a chapter of random tokens, with the chapter read once, in a batch that reads it four
times, and by `transformers.generate` in a batch. Tuning: dialogues by rule about the pages of lmlab's documentation,
packed into rows of 8K tokens; as they are, and with the mask inverted. The loss is that of answers about held-out
pages, with its paired interval over them. The model is that of the part `extend`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_parts.decode import theirs
from gpu_parts.extend import model_of
from gpu_parts.session import Session
from gpu_parts.shapes import make, shape
from lmlab.data import Reject, Tokenizer
from lmlab.data.chapters.chapter import split_at_paragraphs
from lmlab.data.chapters.source import read_chapters
from lmlab.methods.tutor.dialogues.encode import FormattedDialogue, UnfitRecord, format_record
from lmlab.methods.tutor.writing.rule import rule_dialogue
from lmlab.models import GenerationConfig, ModelConfig, Transformer, continue_shared, generate
from lmlab.models.generation.config import DecodingConfig
from lmlab.stats import paired_bootstrap
from lmlab.train import language_model_step

_PAGES = Path(__file__).resolve().parents[2] / "docs"
_QUESTIONS, _NEW, _LENGTH = 4, 64, 8192
_STEPS, _ROWS, _RATE = 24, 4, 1e-4
_TUNED = "dialogues in rows of 8K tokens: loss of held-out answers"


def run(session: Session) -> None:
    """Answers first."""
    _open_book(session)
    _tuning(session)


def _open_book(session: Session) -> None:
    length, new = (96, 4) if session.tiny else (_LENGTH, _NEW)
    for size in ("135M",) if session.tiny else ("135M", "1B"):
        config = shape(size, session.tiny, max_seq_len=length + new)
        table = f"open book, {size}, {_QUESTIONS} questions about {length} tokens, {new} more each, bf16"
        shared: dict[str, float] = {}
        for name, build in (("the chapter read once", _once), ("in a batch", _batch), ("transformers", theirs)):
            row: dict[str, Any] = {"contender": name}
            if not session.has(f"open book {size} {name}", 30):
                continue
            with session.attempt(table, row):
                answer, prompts = build(session, config), _prompts(config, length)
                took = session.median(lambda a=answer, p=prompts: a(p, new), 8.0, warmup=1, least=2, most=5)
                shared.setdefault("once", took)
                row |= {"s a chapter": took, "tokens/s": _QUESTIONS * new / took, "prompt tokens/s": 4 * length / took}
                row |= {"over the first": took / shared["once"], "peak GiB": session.peak_gib()}
                session.record.row(table, row)
                del answer


def _prompts(config: ModelConfig, length: int) -> list[list[int]]:
    """One chapter, and questions of one length, as the peer's batch of them is read without a mask."""
    draw = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(0, config.vocab_size, (count,), generator=draw).tolist()

    most = length // 16
    chapter = ids(length - most)
    return [chapter + ids(most) for _ in range(_QUESTIONS)]


def _once(session: Session, config: ModelConfig) -> Callable[[list[list[int]], int], Any]:
    model = make(config, session.device, torch.bfloat16).eval()

    def answer(prompts: list[list[int]], new: int) -> Any:
        settings = DecodingConfig(max_new_tokens=new, temperature=0)
        return continue_shared(model, [(prompt, settings) for prompt in prompts], str)

    return answer


def _batch(session: Session, config: ModelConfig) -> Callable[[list[list[int]], int], Any]:
    model = make(config, session.device, torch.bfloat16).eval()
    return lambda prompts, new: generate(model, prompts, GenerationConfig(max_new_tokens=new, temperature=0))


def _tuning(session: Session) -> None:
    base, tokenizer = model_of(session)
    length = min(_LENGTH, base.config.max_seq_len)
    train, heldout = _dialogues(tokenizer, length, 3 if session.tiny else 400)
    steps, each = (2, 1) if session.tiny else (_STEPS, _ROWS)
    state = {name: tensor.cpu().clone() for name, tensor in base.state_dict().items()}
    config = base.config
    del base
    before: np.ndarray | None = None
    for name in ("as it was", "tuned", "mask inverted"):
        row: dict[str, Any] = {"model": name}
        if not session.has(f"tuning {name}", 90):
            continue
        with session.attempt(_TUNED, row):
            model = Transformer(config)
            model.load_state_dict(state)
            model = model.to(session.device)
            model.recompute_blocks = 1
            if name != "as it was":
                row |= _learn(session, model, _packed(train, length, name == "mask inverted"), steps, each)
            losses = _losses(session, model, [found for _, found in heldout])
            row |= {"dialogues": len(losses), "pages": len({page for page, _ in heldout}), "nats": losses.mean()}
            if before is None:
                before = losses
            else:
                gap, _ = paired_bootstrap(before, losses, clusters=[page for page, _ in heldout])
                row |= {"%": 100 * (losses.mean() / before.mean() - 1), "low": gap.low, "high": gap.high}
            session.record.row(_TUNED, row | {"peak GiB": session.peak_gib()})
            del model


Found = tuple[str, FormattedDialogue]


def _dialogues(tokenizer: Tokenizer, length: int, most: int) -> tuple[list[Found], list[Found]]:
    """By rule about the parts of pages, each fourth page held out: the page's name, and the tokens."""
    parts: tuple[list[Found], list[Found]] = [], []
    pages = [each for each in read_chapters(str(_PAGES), min_words=100) if not isinstance(each, Reject)]
    for number, page in enumerate(pages):
        own = parts[number % 4 == 3]
        for part in split_at_paragraphs(page, max(30, length // 3)):
            turns = rule_dialogue(part, 0, 0, 8, "passage") or rule_dialogue(part, 0, 0, 8, "sentence")
            if turns is None or len(own) >= most:
                continue
            record = {"mode": "openbook", "conversation": [part.text, *turns]}
            try:
                own.append((page.path, format_record(record, tokenizer, length + 1)))
            except UnfitRecord:
                continue
    assert parts[0] and parts[1], "the documentation gives no dialogues"
    return parts


def _packed(found: Sequence[Found], length: int, invert: bool) -> list[dict[str, torch.Tensor]]:
    """Dialogues one after the other in rows, none of them cut; what is missing is not learned."""
    packed: list[list[FormattedDialogue]] = [[]]
    for _, each in found:
        if sum(len(other.ids) for other in packed[-1]) + len(each.ids) > length + 1:
            packed.append([])
        packed[-1].append(each)
    made = []
    for row in packed:
        ids = [id for each in row for id in each.ids]
        learned = [bool(flag) != invert for each in row for flag in each.mask]
        owner = [number for number, each in enumerate(row) for _ in each.ids]
        labels = [id if ok and before == of else -100
                  for id, ok, before, of in zip(ids[1:], learned[1:], owner, owner[1:], strict=False)]  # fmt: skip
        rest = length - len(labels)
        columns = (ids[:-1] + [0] * rest, labels + [-100] * rest, owner[:-1] + [len(row)] * rest)
        names = ("input_ids", "labels", "document_ids")
        made.append({name: torch.tensor([column]) for name, column in zip(names, columns, strict=True)})
    return made


def _learn(
    session: Session, model: Transformer, rows: Sequence[dict[str, torch.Tensor]], steps: int, each: int
) -> dict[str, Any]:
    """So many steps of so many rows, in turn; tokens a second."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    start, done = time.perf_counter(), 0
    for step in range(steps):
        if session.left() < 45 and not session.tiny:
            break
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(1.0, (step + 1) / 3) * 0.5 * (1 + math.cos(math.pi * step / steps))
        batch = [rows[(step * each + number) % len(rows)] for number in range(each)]
        count = max(1, sum(int((row["labels"] != -100).sum()) for row in batch))
        for row in batch:
            moved = {name: value.to(session.device) for name, value in row.items()}
            with torch.autocast(session.device.type, torch.bfloat16, enabled=session.is_cuda):
                summed = language_model_step(model, moved).loss_sum
            (summed / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        done += 1
    session.synchronize()
    tokens = done * each * rows[0]["input_ids"].numel()
    return {"steps": done, "tokens/s": tokens / (time.perf_counter() - start)}


@torch.no_grad()
def _losses(session: Session, model: Transformer, found: Sequence[FormattedDialogue]) -> np.ndarray:
    """Nats a token of the answers of each dialogue."""
    losses = []
    for each in found:
        (row,) = _packed([("", each)], len(each.ids) - 1, False)
        moved = {name: value.to(session.device) for name, value in row.items()}
        with torch.autocast(session.device.type, torch.bfloat16, enabled=session.is_cuda):
            step = language_model_step(model.eval(), moved)
        losses.append(float(step.loss_sum) / float(step.count))
    return np.array(losses)
