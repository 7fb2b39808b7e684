"""Published classifiers as raters, through the same annotation, against the pipeline of `transformers`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.methods.qurating import Rater, select
from lmlab.methods.qurating.annotating.annotate import annotate
from lmlab.methods.qurating.annotating.corpus import Annotation
from lmlab.methods.qurating.rating.encoder_rater import EncoderRater, load_rater

transformers = pytest.importorskip("transformers")


def classifier(directory: Path, tokenizer: Tokenizer, kind: str, labels: list[str]) -> Path:
    """A small encoder with random weights, and a tokenizer that puts marks around a text."""
    import torch
    from tokenizers.processors import TemplateProcessing

    backend = tokenizers_backend(tokenizer)
    mark = backend.token_to_id("<|endoftext|>")
    backend.post_processor = TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", mark)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|endoftext|>", model_max_length=64
    )
    fast.save_pretrained(directory)
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    shape |= {"max_position_embeddings": 64, "num_hidden_layers": 2}
    name, own = {
        "bert": ("BertConfig", {}),
        "roberta": ("RobertaConfig", {"max_position_embeddings": 64 + mark + 1}),
        "mpnet": ("MPNetConfig", {"max_position_embeddings": 66}),  # it pads with 1, whatever is said
        "fnet": ("FNetConfig", {}),
        "funnel": ("FunnelConfig", {"block_sizes": [1, 1], "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64}),
        "xlnet": ("XLNetConfig", {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}),
        "gpt_neo": ("GPTNeoConfig", {"num_layers": 2, "num_heads": 2, "attention_types": [[["global"], 2]]}),
    }[kind]
    if kind in ("funnel", "xlnet"):
        shape = {}
    elif kind == "gpt_neo":
        shape = {name: shape[name] for name in ("hidden_size", "intermediate_size", "max_position_embeddings")}
    config = getattr(transformers, name)(
        **{**shape, **own},
        vocab_size=len(fast),
        pad_token_id=mark,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(directory)
    return directory


def tokenizers_backend(tokenizer: Tokenizer) -> Any:
    import tokenizers

    return tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())


@pytest.mark.parametrize(("kind", "labels"), [("bert", ["LABEL_0"]), ("bert", ["Low", "High quality"])])
def test_scores_are_those_of_the_library(
    tmp_path: Path, tokenizer: Tokenizer, quality_texts: list[str], kind: str, labels: list[str]
) -> None:
    rater = load_rater(classifier(tmp_path / "c", tokenizer, kind, labels), precision="fp32")
    assert isinstance(rater, EncoderRater)
    assert rater.criteria == (("score",) if len(labels) == 1 else ("low", "high_quality"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "c").eval()
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "c")
    ids = rater.tokenizer.encode_batch([text[:60] for text in quality_texts[:12]])
    ids = [row[: rater.segment] for row in ids]
    found = rater.score_ids(ids)
    import torch

    for row, scores in zip(ids, found, strict=True):
        whole = [*words("a")["input_ids"][:1], *row, *words("a")["input_ids"][-1:]]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([whole]), attention_mask=torch.ones(1, len(whole))).logits[0]
        expected = logits if len(labels) == 1 else logits.softmax(-1)
        np.testing.assert_allclose(scores, expected.numpy(), atol=1e-4)


def test_a_classifier_annotates_and_its_column_selects(
    tmp_path: Path, tokenizer: Tokenizer, quality_texts: list[str]
) -> None:
    place = classifier(tmp_path / "c", tokenizer, "bert", ["bad", "good"])
    rows = [{"id": f"d{n}", "text": text} for n, text in enumerate([*quality_texts[:20], ""])]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    job = Annotation(str(tmp_path / "in.jsonl"), str(place), str(tmp_path / "out"), precision="fp32", block=8)
    found = annotate(job)
    assert (found["rows"], found["empty"], found["rated"]) == (21, 1, 21)
    table = pq.read_table(tmp_path / "out/00000.parquet").to_pylist()
    rater = load_rater(place, precision="fp32")
    for row in table[:20:5]:
        (ids,) = rater.tokenizer.encode_batch([row["text"]])
        assert row["length"] == len(ids) and all(length <= 62 for length in row["chunk_lengths"])
        assert sum(row["good_chunks"] + row["bad_chunks"]) == pytest.approx(len(row["chunk_lengths"]), abs=1e-4)
    options: dict[str, Any] = {"metric": "good_average", "mode": "top_k", "skip_empty": True, "drop_nonfinite": True}
    chosen = select(str(tmp_path / "out"), tokens=1, **options)
    assert chosen.ids == [max(table[:20], key=lambda row: row["good_average"])["id"]]
    assert annotate(job)["rated"] == 0


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification", "single_label_classification"])
def test_scores_are_what_the_classifier_was_trained_to_give(tmp_path: Path, tokenizer: Tokenizer, problem: str) -> None:
    place = classifier(tmp_path / "c", tokenizer, "bert", ["bad", "good", "fine"])
    settings = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(settings | {"problem_type": problem}))
    rater = load_rater(place, precision="fp32")
    ((_, scores),) = rater.rate_ids(rater.tokenizer.encode_batch(["river stone garden"]))
    pipe = transformers.pipeline("text-classification", model=str(place), device="cpu", top_k=None)
    expected = {found["label"]: found["score"] for found in pipe(["river stone garden"])[0]}
    assert dict(zip(rater.criteria, scores[0].tolist(), strict=True)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["roberta", "mpnet"])
def test_positions_that_begin_behind_padding_are_not_run_past(tmp_path: Path, tokenizer: Tokenizer, kind: str) -> None:
    place = classifier(tmp_path / "c", tokenizer, kind, ["bad", "good"])
    settings = json.loads((place / "tokenizer_config.json").read_text())
    del settings["model_max_length"]  # as some published ones lack it
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    rater = load_rater(place, precision="fp32")
    assert isinstance(rater, EncoderRater) and rater.segment == 62
    ((lengths, scores),) = rater.rate_ids([[5] * 100])
    assert lengths == [62, 38] and np.isfinite(scores).all()


@pytest.mark.parametrize("kind", ["fnet", "funnel", "xlnet", "gpt_neo"])
def test_scores_of_any_family_do_not_depend_on_the_texts_beside(
    tmp_path: Path, tokenizer: Tokenizer, kind: str
) -> None:
    rater = load_rater(classifier(tmp_path / "c", tokenizer, kind, ["bad", "good"]), precision="fp32")
    assert isinstance(rater, EncoderRater)
    texts = [[5, 9, 7], [8] * 20, [6, 4, 11], [7, 12] * 15]
    together = rater.score_ids(texts)
    np.testing.assert_allclose(together, np.concatenate([rater.score_ids([text]) for text in texts]), atol=1e-5)
    ((lengths, _),) = rater.rate_ids([[5] * 100])
    assert lengths == [62, 38]


def test_what_is_no_classifier_is_refused(tmp_path: Path, tokenizer: Tokenizer, rater: Rater) -> None:
    place = classifier(tmp_path / "c", tokenizer, "bert", ["a", "A"])
    with pytest.raises(UserError, match="not told apart"):
        load_rater(place)
    (place / "model.safetensors").rename(place / "pytorch_model.bin")
    with pytest.raises(UserError, match="no safetensors"):
        load_rater(place)
    rater.save(tmp_path / "own")
    assert isinstance(load_rater(tmp_path / "own"), Rater)
