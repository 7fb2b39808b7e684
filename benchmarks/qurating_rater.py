"""A rater's training and annotation beside a plain loop of `transformers` with padding, and beside the trainer's own
speed on a language model.

The texts have mixed lengths, 20 to 256 tokens, of which many are short. Both sides have the same weights; real tokens
are counted, padding is not. Processor time, in turns.

    OMP_NUM_THREADS=1 python benchmarks/qurating_rater.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from lmlab.methods.qurating import Rater, rater_step
from lmlab.methods.qurating.rating.judgment_rows import EncodedGroup, JudgmentRows
from lmlab.models import ModelConfig, Transformer, save_pretrained
from lmlab.train import OptimizerConfig, Optimizers, language_model_step


def make_groups(count: int, vocabulary: int, rng: np.random.Generator) -> list[EncodedGroup]:
    groups = []
    for _ in range(count):
        lengths = np.exp(rng.uniform(np.log(20), np.log(256), 2)).astype(int)  # many are short
        ids = tuple(rng.integers(0, vocabulary, length).astype(np.int32) for length in lengths)
        groups.append(EncodedGroup(ids, np.array([[0, 1]]), rng.choice([0.05, 0.95], (1, 1))))
    return groups


def tensors(rows: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}


def timed(work: object, *arguments: object) -> float:
    start = time.process_time()
    work(*arguments)  # type: ignore[operator]
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    from transformers import AutoModelForSequenceClassification

    rng = np.random.default_rng(0)
    config = ModelConfig(vocab_size=4096, num_layers=4, d_model=256, num_heads=4, max_seq_len=512, num_labels=1)
    model = Transformer(config).initialize(0)
    with tempfile.TemporaryDirectory() as name:
        save_pretrained(model, Path(name), tokens={"pad_token_id": 0})
        theirs = AutoModelForSequenceClassification.from_pretrained(name).train()
    language = Transformer(config.model_copy(update={"num_labels": None})).initialize(0)
    groups = make_groups(32, config.vocab_size, rng)
    real = sum(group.num_tokens for group in groups)
    rows = JudgmentRows(groups, 1024)
    batch = tensors([rows[number] for number in range(len(rows))])
    texts = [torch.from_numpy(ids.astype(np.int64)) for group in groups for ids in group.ids]
    longest = max(map(len, texts))
    ids = torch.stack([F.pad(text, (0, longest - len(text))) for text in texts])
    mask = torch.stack([F.pad(torch.ones(len(text), dtype=torch.long), (0, longest - len(text))) for text in texts])
    labels = torch.from_numpy(np.concatenate([group.labels for group in groups])).float()
    ours_optimizer = Optimizers(model, OptimizerConfig(learning_rate=1e-4))
    language_optimizer = Optimizers(language, OptimizerConfig(learning_rate=1e-4))
    theirs_optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-4)
    packed = {
        "input_ids": batch["input_ids"],
        "document_ids": batch["document_ids"],
        "labels": batch["input_ids"].roll(-1, 1),
    }

    def train_ours() -> None:
        output = rater_step(0.5)(model, batch)
        (output.loss_sum / output.count).backward()
        ours_optimizer.step()
        ours_optimizer.zero_grad()

    def train_language() -> None:
        output = language_model_step(language, packed)
        (output.loss_sum / output.count).backward()
        language_optimizer.step()
        language_optimizer.zero_grad()

    def train_theirs() -> None:
        scores = theirs(input_ids=ids, attention_mask=mask).logits.view(-1, 2)
        F.binary_cross_entropy_with_logits(scores[:, 1] - scores[:, 0], labels[:, 0]).backward()
        theirs_optimizer.step()
        theirs_optimizer.zero_grad()

    class Words:
        fingerprint, eos_id = "", 0

    rater = Rater(model, Words(), ["one"], segment=512, precision="fp32")  # type: ignore[arg-type]
    segments = [text.tolist() for text in texts]

    def rate_ours() -> None:
        rater.score_ids(segments)

    @torch.no_grad()
    def rate_theirs() -> None:
        for start in range(0, len(texts), 16):
            part = slice(start, start + 16)
            width = int(mask[part].sum(1).max())
            theirs(input_ids=ids[part, :width], attention_mask=mask[part, :width])

    @torch.no_grad()
    def forward_language() -> None:
        language(packed["input_ids"], document_ids_BT=packed["document_ids"], logits="none")

    work = {"train": (train_ours, train_theirs, train_language), "annotate": (rate_ours, rate_theirs, forward_language)}
    sizes = f"padded to the longest {ids.numel():,}, packed {batch['input_ids'].numel():,}"
    print(f"{len(texts)} texts, {real:,} tokens; {sizes}; threads {torch.get_num_threads()}")
    for name, sides in work.items():
        for side in sides:
            side()
        times = [[timed(side) for side in sides] for _ in range(options.rounds)]
        ours, other, core = (real / min(column) for column in zip(*times, strict=True))
        print(f"{name:>9}: lmlab {ours:,.0f} tokens/s, transformers {other:,.0f} ({ours / other:.2f} times), "
              f"the core on packed rows of a language model {core:,.0f} ({ours / core:.0%})")  # fmt: skip


if __name__ == "__main__":
    main()
