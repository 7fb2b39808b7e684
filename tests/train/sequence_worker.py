"""Losses and gradients of parts of texts, for the tests: `torchrun sequence_worker.py OUT`.

The processes form groups of 2, 3 and 4, and compare what each group finds with one process that has everything.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from lmlab.data.packing import pieces
from lmlab.distributed import joined
from lmlab.models import ModelConfig, Transformer
from lmlab.train import language_model_step_by_domain
from lmlab.train.parallelism.sequence import Part, SequenceParallelStep, way_of

VOCABULARY = 40
DOCUMENTS = {
    "one": [[97]],  # axolotl 3608: right with one document,
    "five": [[20, 41, 7, 60, 13]],  # and wrong with five
    "odd": [[1, 7, 89, 137]],  # TransformerEngine 1930, torchtitan 2536
    "two rows": [[31, 1, 33], [5, 60]],
    "short": [[3]],  # a process of four has nothing but padding: Megatron-LM 7498
    "unmasked at the end": [[40, 24]],
    "growing window": [[40, 24]],  # cut into pieces, as a window that grows cuts documents
}
PIECE = 7
HEADS = {"4/4": (4, 4), "4/2": (4, 2), "9/3": (9, 3)}


def rows(name, case):
    """Packed rows with labels of which some, for "unmasked at the end" most, are ignored."""
    generator = torch.Generator().manual_seed(hash_of(name))
    longest = max(map(sum, case))
    batch = {key: [] for key in ("input_ids", "labels", "document_ids", "domain_ids")}
    for lengths in case:
        ids = torch.randint(VOCABULARY, (sum(lengths) + 1,), generator=generator)
        documents = torch.cat([torch.full((length,), number) for number, length in enumerate(lengths)])
        labels = ids[1:].clone()
        labels[torch.rand(len(labels), generator=generator) < 0.3] = -100
        labels[torch.tensor(lengths).cumsum(0) - 1] = -100
        if name == "unmasked at the end":
            labels[:50] = -100
        if name == "growing window":
            documents = torch.from_numpy(pieces(documents.numpy(), PIECE))
        room = longest - sum(lengths)
        for key, value, fill in (
            ("input_ids", ids[:-1], 0),
            ("labels", labels, -100),
            ("document_ids", documents, -1),
            ("domain_ids", documents % 2, 0),
        ):
            batch[key].append(torch.nn.functional.pad(value, (0, room), value=fill))
    return {key: torch.stack(each) for key, each in batch.items()}


def hash_of(name):
    return sum(map(ord, name))


def run(model, step, batch):
    model.zero_grad()
    output = step(model, batch)
    output.loss_sum.backward()
    sums = torch.stack(
        [
            torch.as_tensor(each).double()
            for pair in ((output.loss_sum, output.count), *output.sums.values())
            for each in pair
        ]
    ).detach()
    return sums, {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def difference(ours, theirs):
    return max(
        float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max().clamp(min=1)) for name in theirs
    )


def main(out: Path) -> None:
    found = {}
    with joined() as world:
        groups = {size: dist.new_group(list(range(size))) for size in range(2, world.size + 1)}
        for heads, (num_heads, num_kv_heads) in HEADS.items():
            for window in (None, 16) if heads == "4/2" else (None,):
                sliding = {"attention": ("full", "sliding"), "sliding_window": 16} if window else {}
                config = ModelConfig(
                    vocab_size=VOCABULARY,
                    num_layers=2,
                    d_model=4 * num_heads,
                    num_heads=num_heads,
                    num_kv_heads=num_kv_heads,
                    head_dim=4,
                    init_std=0.3,
                    **sliding,
                )
                wholes = {}
                for name, case in DOCUMENTS.items():
                    model = Transformer(config).initialize(1)
                    model.recompute_blocks = int(name == "odd")
                    plain, batch = language_model_step_by_domain(["a", "b"]), rows(name, case)
                    wholes[name] = model, plain, batch, *run(model, plain, batch)
                for size, group in groups.items():
                    if world.rank >= size:
                        continue
                    ways = {way_of(config, size, "auto"), *(["allgather_kv"] if heads == "4/2" else [])}
                    for way in sorted(ways):
                        for name, (model, plain, batch, whole_sums, whole) in wholes.items():
                            part = Part(group, world.rank, size)
                            sums, gradients = run(model, SequenceParallelStep(plain, part, way), batch)
                            together = torch.cat([sums, *(each.double().flatten() for each in gradients.values())])
                            dist.all_reduce(together, group=group)  # at once: each exchange waits for all
                            sums, *parts = together.split([len(sums), *(each.numel() for each in gradients.values())])
                            gradients = {
                                name: part.view_as(each)
                                for part, (name, each) in zip(parts, gradients.items(), strict=True)
                            }
                            key = f"{heads}, {size} processes, {way}, {name}" + (", window" if window else "")
                            found[key] = [
                                float((sums - whole_sums).abs().max() / whole_sums.abs().max()),
                                difference(gradients, whole),
                                max(float(each.abs().max()) for each in whole.values()),
                            ]
        if world.is_main:
            out.write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
