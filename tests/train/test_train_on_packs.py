"""A recipe packs its documents, trains on the sequences, and goes on with a longer window."""

from __future__ import annotations

import numpy as np
import yaml
from safetensors.torch import load_file

from lmlab.data import GrowingRows, JoinedRows, Loader, PackRows, TokenizedCorpus, WindowSchedule
from lmlab.files import read_json
from lmlab.models import from_pretrained
from lmlab.train import checkpoints


def _packed(data):
    stages = data["stages"]
    model = stages.pop("model")
    stages["packs"] = {
        "kind": "pack",
        "tokens": "tokens",
        "pack_length": 32,
        "min_chunk_length": 8,
        "min_doc_length": 4,
    }
    model |= {"tokens": "packs", "seq_len": 64}
    model["trainer"]["steps"] = 2
    stages["model"] = model


def test_training_takes_packed_sequences(lmlab, recipe, tmp_path):
    path = recipe(lambda data: _packed(data), until="model")
    assert lmlab("run", path, "--out", tmp_path / "run").code == 0
    run = tmp_path / "run"
    account = read_json(run / "packs" / "packs.json")["account"]
    corpus = TokenizedCorpus(run / "tokens")
    assert account["tokens"] == corpus.num_tokens and account["documents"] == corpus.num_documents
    rows = PackRows(run / "packs", 64)
    assert len(rows) == account["sequences"] // 2
    assert np.isin(rows[0]["input_ids"], corpus.shards[0].tokens).all()
    trained = read_json(run / "results.json")["model"]
    assert trained["tokens"] == 2 * 4 * 64


def _longer(data):
    model = data["stages"]["model"]
    model["trainer"]["steps"] = 2
    data["stages"]["longer"] = {
        "kind": "train",
        "tokens": "tokens",
        "start": "model",
        "start_optimizer": True,
        "window": {"max_seq_len": 1024},
        "document_masks": False,
        "seq_len": 512,
        "trainer": model["trainer"] | {"batch_size": 2},
    }


def test_a_later_stage_extends_the_window_and_carries_the_optimizer_over(lmlab, recipe, tmp_path):
    path, run = recipe(_longer), tmp_path / "run"
    stages = yaml.safe_load(path.read_text())
    kept = ("documents", "tokenizer", "tokens", "heldout_tokens", "model", "longer")
    stages["stages"] = {name: stages["stages"][name] for name in kept}
    path.write_text(yaml.safe_dump(stages, sort_keys=False))
    assert lmlab("run", path, "--out", run).code == 0
    model = from_pretrained(run / "longer" / "model")
    assert (model.config.max_seq_len, model.config.rope_theta) == (1024, 2 * 4 * 10_000)
    before, after = (checkpoints(run / name / "checkpoints")[-1] for name in ("model", "longer"))
    steps = [float(_optimizer_steps(place)) for place in (before, after)]
    assert steps == [2, 4]  # the moments went on
    # a directory extends in the same way
    stages["stages"]["again"] = stages["stages"].pop("longer") | {"start": str(run / "longer" / "model")}
    stages["stages"]["again"] |= {"start_optimizer": False, "window": {"max_seq_len": 2048, "rope_theta": "keep"}}
    stages["stages"]["again"]["window_schedule"] = {"start": 16, "rate": 100}
    path.write_text(yaml.safe_dump(stages, sort_keys=False))
    again = lmlab("run", path, "--out", run)
    assert again.code == 0 and "window.rope_theta: auto would make it" in again.err
    assert from_pretrained(run / "again" / "model").config.max_seq_len == 2048


def _optimizer_steps(place):
    tensors = {}
    for file in place.glob("*.safetensors"):
        tensors |= load_file(file)
    return next(value for name, value in sorted(tensors.items()) if name.endswith(".step"))


class _Rows:
    seq_len, domains, shortened, left_out = 6, ["a"], 0, 0

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return {
            "input_ids": np.array([5, 6, 7, 8, 9, 0]),
            "labels": np.array([6, -100, 8, 9, -100, -100]),
            "document_ids": np.array([0, 0, 1, 1, 1, -1]),
            "domain_ids": np.zeros(6, np.int64),
        }

    def begins_as(self, num_rows, count):
        return True


def test_a_window_grows_within_documents_and_no_label_is_lost():
    rows = GrowingRows(_Rows(), 4, WindowSchedule(start=2, rate=0.5))
    found = [rows[number]["document_ids"].tolist() for number in (0, 3, 4, 8, 11)]
    assert found == [[0, 0, 1, 1, 2, -1]] * 3 + [[0, 0, 1, 1, 1, -1]] * 2  # two tokens for two steps, then three
    assert all(np.array_equal(rows[n]["labels"], _Rows()[n]["labels"]) for n in range(12))
    # the rows of a step are the same whoever reads them, and however many have been read before
    whole = list(Loader(rows, 4, 0, shuffle=False))
    second = Loader(rows, 4, 0, 1, 2, shuffle=False)
    second.restore({"next_row": 8, "seed": 0, "num_rows": 12})
    assert next(iter(second))["document_ids"].tolist() == whole[2]["document_ids"][1::2].tolist()


def test_a_window_that_shrinks_is_refused(lmlab, recipe, tmp_path):
    def wrong(data):
        data["stages"]["model"]["window_schedule"] = {"start": 64, "end": 32}

    refused = lmlab("run", recipe(wrong, until="model"), "--out", tmp_path / "run")
    assert refused.code == 2 and "pieces only grow" in refused.err


def test_rows_without_masks_are_one_text():
    row = JoinedRows(_Rows())[0]
    assert row["labels"].tolist() == [6, 7, 8, 9, -100, -100]
    assert row["document_ids"].tolist() == [0, 0, 0, 0, 0, -1]
