"""InfoNCE against a plain writing, and an encoder that learns from it; a hardened retriever is attacked anew."""

from __future__ import annotations

import contextlib
import json
import signal
import time

import numpy as np
import pytest
import torch

from lmlab.errors import Interrupted, UserError
from lmlab.methods.corpus_poisoning import CraftConfig, EncoderSpec
from lmlab.methods.corpus_poisoning.attack.run import time_limit
from lmlab.methods.corpus_poisoning.config import HardenConfig
from lmlab.methods.corpus_poisoning.defend.harden import harden
from lmlab.methods.corpus_poisoning.setup import Retriever
from lmlab.retrieval import load_dataset, load_encoder, static_encoder
from lmlab.retrieval.training import TrainingPair, train_encoder
from lmlab.train.tuning.contrastive import ContrastiveExample, ContrastiveRows, contrastive_step
from tiny_retriever import write_retriever


def test_the_loss_is_the_log_share_of_the_own_document_and_the_same_document_is_no_negative(tiny):
    texts = [("what is sea?", ["sea ship", "star moon"]), ("what is ship?", ["sea ship", "bread oven"])]
    numbers = {"sea ship": 0, "star moon": 1, "bread oven": 2}
    examples = [
        ContrastiveExample(
            tiny.tokenize([query], "query")[0], tiny.tokenize(documents), [numbers[text] for text in documents]
        )
        for query, documents in texts
    ]
    rows = ContrastiveRows(examples)
    batch = {key: torch.stack([torch.as_tensor(rows[n][key]) for n in range(2)]) for key in rows[0]}
    output = contrastive_step(temperature=0.1)(tiny.body.module, batch)
    queries = tiny.encode_text([query for query, _ in texts], "query")
    documents = tiny.encode_text(["sea ship", "star moon", "bread oven"])
    scores = torch.from_numpy(queries @ documents.T).double() / 0.1
    expected = -torch.log_softmax(scores, 1)[:, 0].sum()  # each of the three documents once
    assert float(output.loss_sum) == pytest.approx(float(expected), abs=1e-4) and int(output.count) == 2
    with pytest.raises(ValueError, match="different numbers of documents"):
        ContrastiveRows([examples[0], ContrastiveExample([1], [[1]], [0])])


def test_an_encoder_learns_which_document_answers_a_query(tiny, collection, tmp_path):
    data = load_dataset(collection, "train")
    texts = dict(zip(data.corpus.ids, data.corpus.texts, strict=True))
    pairs = [
        TrainingPair(text, texts[next(iter(data.qrels[id]))], (texts["d001"],))
        for id, text in zip(data.queries.ids, data.queries.texts, strict=True)
    ]
    before = tiny.encode_text(["sea ship"])
    trained, summary = train_encoder(tiny, pairs, tmp_path, steps=12, batch_size=6, learning_rate=3e-3)
    assert summary["step"] == 12 if "step" in summary else True

    def accuracy(encoder):
        queries = encoder.encode_text([pair.query for pair in pairs], "query")
        documents = encoder.encode_text([pair.positive for pair in pairs])
        same = np.array([[a.positive == b.positive for b in pairs] for a in pairs])
        best = (queries @ documents.T).argmax(1)
        return same[np.arange(len(pairs)), best].mean()

    assert accuracy(trained) > accuracy(tiny)
    assert np.array_equal(tiny.encode_text(["sea ship"]), before)  # the encoder itself is untouched
    assert trained.fingerprint["model"] != tiny.fingerprint["model"]
    with pytest.raises(UserError, match="fewer than a batch of 99"):
        train_encoder(tiny, pairs, tmp_path / "b", batch_size=99)
    static = static_encoder(tiny.embedding_matrix_VD, tiny.tokenizer)
    with pytest.raises(UserError, match="is no encoder whose network can be trained here"):
        train_encoder(static, pairs, tmp_path / "c")


def test_rounds_of_attack_and_training_report_old_and_new_success(collection, tmp_path):
    place = write_retriever(tmp_path / "encoder")
    config = CraftConfig(k=2, length=8, evaluations=80, candidates=10, precision="fp32")
    settings = HardenConfig(rounds=1, steps=6, batch=6, learning_rate=1e-3, depth=5)
    retriever = Retriever(EncoderSpec(str(place), {"truncate_dim": 16}), tmp_path / "cache")
    rows = harden(retriever, str(collection), config, settings, tmp_path / "out")
    assert [row["round"] for row in rows] == [0, 1] and rows[0]["asr@5_old"] is None
    assert all(0 <= row["asr@5_new"] <= 1 and 0 <= row["clean_ndcg@10"] <= 1 for row in rows)
    assert 0 <= rows[1]["asr@5_old"] <= 1
    hardened = load_encoder(tmp_path / "out" / "round-1" / "encoder")
    assert hardened.fingerprint["model"] != load_encoder(place).fingerprint["model"]
    stores = [json.loads(path.read_text()) for path in (tmp_path / "cache").rglob("meta.json")]
    assert {each["fingerprint"]["model"] for each in stores} > {hardened.fingerprint["model"]}
    assert {each["dim"] for each in stores} == {16}  # in all rounds
    other = settings.model_copy(update={"learning_rate": 3e-2})  # the finished training is not taken for this one
    with pytest.raises(UserError, match="belong to something else: encoder"):
        harden(retriever, str(collection), config, other, tmp_path / "out")
    with pytest.raises(UserError, match="A gate is for one encoder"):
        harden(retriever, "", config.model_copy(update={"known_gate": tmp_path}), settings, tmp_path / "gate")


@pytest.mark.parametrize("heeded", [True, False])
def test_hardening_ends_in_time_and_goes_on_to_what_a_whole_run_gives(heeded, collection, tmp_path):
    """As Ctrl-C would end it, also where a shell has its background jobs ignore that."""
    place = write_retriever(tmp_path / "encoder")
    config = CraftConfig(k=2, length=8, evaluations=60, candidates=10, precision="fp32")
    settings = HardenConfig(rounds=1, steps=6, batch=6, learning_rate=1e-3, depth=5)
    retriever = Retriever(EncoderSpec(str(place)), tmp_path / "cache")
    before = signal.signal(signal.SIGINT, signal.default_int_handler if heeded else signal.SIG_IGN)
    try:
        with pytest.raises((KeyboardInterrupt, Interrupted)), time_limit(0.02):
            harden(retriever, str(collection), config, settings, tmp_path / "parts")
        for seconds in (0.3, 1.0):
            with contextlib.suppress(KeyboardInterrupt, Interrupted), time_limit(seconds):
                harden(retriever, str(collection), config, settings, tmp_path / "parts")
    finally:
        signal.signal(signal.SIGINT, before)
    rows = [harden(retriever, str(collection), config, settings, tmp_path / name) for name in ("parts", "whole")]
    assert rows[0] == rows[1]


class _NoException(BaseException):
    """As `torch.distributed.checkpoint.CheckpointException` is."""


@pytest.mark.parametrize("made", [ValueError, _NoException])
def test_a_library_that_turns_the_end_of_time_into_an_error_does_not_hide_it(made):
    """safetensors does: a model that was being read looked damaged; and so does PyTorch's checkpointing. What fails
    before the end is told as it is.
    """

    def library():
        try:
            time.sleep(20)
        except KeyboardInterrupt:
            raise made("no shape") from None

    with pytest.raises(KeyboardInterrupt), time_limit(0.02):
        library()
    with pytest.raises(made, match="of its own"), time_limit(20):
        raise made("of its own")


def test_a_prompt_that_is_not_pooled_is_not_pooled_in_training_either(tmp_path):
    place = write_retriever(tmp_path, prompts={"query": "what is ", "document": "the "}, include_prompt=False)
    encoder = load_encoder(place)
    queries, texts = ["sea ship", "star"], ["captain", "moon orbit comet"]
    examples = [
        ContrastiveExample(encoder.tokenize([query], "query")[0], encoder.tokenize([text]), [number])
        for number, (query, text) in enumerate(zip(queries, texts, strict=True))
    ]
    rows = ContrastiveRows(examples)
    batch = {key: torch.stack([torch.as_tensor(rows[n][key]) for n in range(2)]) for key in rows[0]}
    scores = torch.from_numpy(encoder.encode_text(queries, "query") @ encoder.encode_text(texts).T).double() / 0.1
    expected = float(-torch.log_softmax(scores, 1).diagonal().sum())
    found = contrastive_step(encoder.modes, 0.1, True, (3, 2))(encoder.body.module, batch)
    assert float(found.loss_sum) == pytest.approx(expected, abs=1e-4)
    pooled = contrastive_step(encoder.modes, 0.1, True)(encoder.body.module, batch)
    assert abs(float(pooled.loss_sum) - expected) > 1e-2
