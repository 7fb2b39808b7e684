"""A recipe packs its documents and trains on the sequences."""

from __future__ import annotations

import numpy as np

from lmlab.data import PackRows, TokenizedCorpus
from lmlab.files import read_json


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
