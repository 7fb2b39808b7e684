"""A text that several processes share gives the loss and the gradients of one process."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from lmlab.data.packing import pieces
from lmlab.distributed import World
from lmlab.errors import UserError
from lmlab.models import ModelConfig, RopeScaling, Transformer
from lmlab.train import ParallelConfig, TrainerConfig, language_model_step
from lmlab.train.parallelism.sequence import heads_repeated, pieces_of, split_rows, way_of
from lmlab.train.prepare import compile_network
from lmlab.train.steps.step import attention_cost, by_cost

_WORKER = Path(__file__).with_name("sequence_worker.py")
SMOLLM = ModelConfig(vocab_size=40, num_layers=1, d_model=36, num_heads=9, num_kv_heads=3)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this build of PyTorch has no gloo")
def test_parts_of_a_text_give_the_loss_and_gradients_of_the_whole(tmp_path, forkserver):
    one_thread = {"OMP_NUM_THREADS": "1"}
    done = forkserver.run(tmp_path / "found.json", script=_WORKER, processes=4, environment=one_thread, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert len({key.split(", ")[1] for key in found}) == 3  # groups of 2, 3 and 4
    assert {key.split(", ")[2] for key in found} == {"ulysses", "allgather_kv"}
    for key, (sums, gradients, size) in found.items():
        assert size > 0.1, key  # there is something to compare
        assert sums < 1e-5 and gradients < 1e-5, f"{key}: {sums:.1e} in the sums, {gradients:.1e} in the gradients"


def test_heads_that_do_not_divide_are_refused_or_gathered():
    assert way_of(SMOLLM, 3, "auto") == "ulysses"
    assert way_of(SMOLLM, 2, "auto") == way_of(SMOLLM, 4, "auto") == "allgather_kv"
    with pytest.raises(UserError, match="9 heads cannot be shared evenly by 2 processes"):
        way_of(SMOLLM, 2, "ulysses")
    scaled = SMOLLM.model_copy(update={"rope_scaling": RopeScaling(type="dynamic", factor=2, original_max_seq_len=64)})
    with pytest.raises(UserError, match="depends on how long a text is"):
        way_of(scaled, 3, "auto")


@pytest.mark.parametrize(("kv", "size", "times"), [(8, 8, 1), (8, 4, 1), (2, 4, 2), (3, 9, 3), (4, 6, 3), (1, 2, 2)])
def test_key_value_heads_travel_no_oftener_than_needed(kv, size, times):
    assert heads_repeated(kv, size) == times == math.lcm(kv, size) // kv


def test_processes_must_divide():
    with pytest.raises(UserError, match="sequence_parallel 3 does not divide the 4 processes"):
        ParallelConfig(sequence_parallel=3).data_place(World(0, 4))
    assert [ParallelConfig(sequence_parallel=2).data_place(World(rank, 4)) for rank in range(4)] == [
        (0, 2),
        (0, 2),
        (1, 2),
        (1, 2),
    ]
    rows = TrainerConfig(steps=1, batch_size=4, parallel=ParallelConfig(sequence_parallel=2)).rows_of_process(
        World(0, 4)
    )
    assert rows == 2


def test_a_part_knows_where_its_tokens_stand_in_their_documents():
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    batch = {"input_ids": torch.arange(7)[None], "labels": torch.arange(1, 8)[None], "document_ids": documents}
    chunk, whole = split_rows(batch, 1, 2)
    assert chunk["input_ids"].tolist() == [[4, 5, 6, 0]] and chunk["labels"].tolist() == [[5, 6, 7, -100]]
    assert chunk["position_ids"].tolist() == [[1, 2, 3, 0]] and chunk["document_ids"].tolist() == [[1, 1, 1, -1]]
    assert whole.shape == (1, 8)
    with pytest.raises(UserError, match="no packed rows"):
        split_rows({"chosen_input_ids": torch.zeros(1, 4)}, 0, 2)


def test_gathered_keys_give_every_process_equally_much_to_do():
    """Head and tail: pairs of a query and a key that it sees, of one text."""
    for size in (2, 3, 4):
        length = 2 * size * 5
        batch = {name: torch.arange(length)[None] for name in ("input_ids", "labels")}
        batch["document_ids"] = torch.zeros(1, length, dtype=torch.long)
        chunks = [split_rows(batch, rank, size, pieces_of("allgather_kv"))[0] for rank in range(size)]
        assert sorted(torch.cat([each["input_ids"][0] for each in chunks]).tolist()) == list(range(length))
        pairs = {int((each["position_ids"] + 1).sum()) for each in chunks}
        assert pairs == {length * (length + 1) // (2 * size)}
        plain = [split_rows(batch, rank, size)[0]["position_ids"] + 1 for rank in range(size)]
        assert int(plain[-1].sum()) > 1.4 * pairs.pop()  # where each holds one piece, the last one waits for nobody


def test_rows_are_ordered_by_the_arithmetic_of_their_attention():
    documents = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 0, -1]])
    assert attention_cost(documents).tolist() == [8, 16, 4, 9]
    ordered = by_cost({"document_ids": documents, "input_ids": torch.arange(4)[:, None].expand(4, 4)})
    assert ordered["input_ids"][:, 0].tolist() == [1, 3, 0, 2]


def test_balancing_lengths_shortens_the_slowest_of_eight_processes():
    """Steps of 8 processes of 8 micro-batches each, which wait for each other after each micro-batch."""
    generator = torch.Generator().manual_seed(0)
    before = after = 0.0
    for _ in range(50):
        lengths = torch.exp(torch.randn(8, 8, 40, generator=generator) * 1.3 + 5).clamp(max=4096)
        costs = (lengths**2).sum(-1)
        before += float(costs.max(0).values.sum())
        after += float(costs.sort(1, descending=True).values.max(0).values.sum())
    assert after < 0.95 * before


@pytest.mark.slow
def test_a_window_that_grows_is_compiled_once():
    """Documents are cut otherwise at every step, and the graph stays."""
    from torch._dynamo.utils import counters

    config = ModelConfig(vocab_size=40, num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, init_std=0.3)
    courses = []
    for compiled in (False, True):
        model = Transformer(config).initialize(0)
        if compiled:
            compile_network(model)
        counters.clear()
        course = []
        for step, size in enumerate((3, 4, 5, 6, 8, 12, 20, 32)):
            ids = torch.randint(40, (1, 64), generator=torch.Generator().manual_seed(step))
            documents = torch.from_numpy(pieces((torch.arange(64) // 32).numpy(), size))[None]
            model.zero_grad()
            output = language_model_step(
                model, {"input_ids": ids, "labels": ids.roll(-1, 1), "document_ids": documents}
            )
            output.loss_sum.backward()
            assert model.embedding.weight.grad is not None
            course.append(model.embedding.weight.grad.clone())
        courses.append(course)
    assert 0 < counters["stats"]["unique_graphs"] <= 2
    for eager, translated in zip(*courses, strict=True):
        torch.testing.assert_close(eager, translated, rtol=1e-4, atol=1e-4)
