"""Every family and combination of features against `transformers`, which is the reference for all of them."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from random_models import random_model

from lmlab.errors import UserError
from lmlab.methods.olmoe.config import UpcycleConfig
from lmlab.methods.olmoe.upcycling import upcycle
from lmlab.models import (
    PRESETS,
    KVCache,
    ModelConfig,
    Transformer,
    convert,
    family_of,
    from_pretrained,
    save_pretrained,
    why_no_family,
)

LENGTH = 14
FAMILIES = ["llama", "qwen2", "qwen3", "olmo2", "olmoe", "gpt2", "opt", "phi"]
LEARNED = {"norm": "layernorm", "norm_bias": True, "positions": "learned", "gated": False}

sizes = st.fixed_dictionaries(
    {"vocab_size": st.integers(17, 70), "num_layers": st.integers(1, 3), "max_seq_len": st.just(48)}
)
heads = st.sampled_from([(32, 4, 4), (32, 4, 2), (32, 4, 1), (48, 2, 1), (48, 6, 3)]).map(
    lambda found: dict(zip(("d_model", "num_heads", "num_kv_heads"), found, strict=True))
)
scalings = st.one_of(
    st.none(),
    st.fixed_dictionaries({"type": st.just("linear"), "factor": st.floats(1.5, 8)}),
    st.fixed_dictionaries(
        {"type": st.just("dynamic"), "factor": st.floats(1.5, 8), "original_max_seq_len": st.sampled_from([6, 40])}
    ),
    st.fixed_dictionaries(
        {"type": st.just("yarn"), "factor": st.floats(1.5, 40), "original_max_seq_len": st.sampled_from([8, 512])},
        optional={
            "attention_factor": st.floats(0.8, 1.5),
            "truncate": st.booleans(),
            "beta_fast": st.just(16.0),
            "beta_slow": st.just(2.0),
        },
    ),
    st.fixed_dictionaries(
        {"type": st.just("llama3"), "factor": st.floats(1.5, 32), "original_max_seq_len": st.sampled_from([8, 512])}
    ),
)
common = {
    "d_ff": st.sampled_from([24, 72]),
    "norm_eps": st.sampled_from([1e-6, 1e-5, 1e-3]),
    "tie_embeddings": st.booleans(),
    "activation": st.sampled_from(["silu", "gelu", "gelu_tanh", "relu"]),
    "vocab_multiple": st.sampled_from([1, 16]),
}
rotary = {**common, "rope_theta": st.sampled_from([500.0, 10_000.0, 5e5]), "rope_scaling": scalings}


def both(*names: str) -> st.SearchStrategy[dict[str, bool]]:
    """Fields that vary together."""
    return st.booleans().map(lambda value: dict.fromkeys(names, value))


def merged(*strategies: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(sizes, *strategies).map(
        lambda parts: {key: value for part in parts for key, value in part.items()}
    )


attention_bias = both("qkv_bias", "attention_output_bias")
experts = st.fixed_dictionaries(
    {
        "num_experts": st.sampled_from([4, 7]),
        "top_k": st.integers(2, 4),
        "expert_hidden_size": st.just(24),
        "norm_topk_prob": st.booleans(),
    }
)
one_width = heads.map(lambda found: {**found, "num_kv_heads": found["num_heads"]})
STRATEGIES = {
    "llama": merged(
        heads, st.fixed_dictionaries(rotary, optional={"head_dim": st.just(10)}), attention_bias, both("ffn_bias")
    ),
    "qwen2": merged(heads, st.fixed_dictionaries(rotary), st.just({"qkv_bias": True})),
    "qwen3": merged(
        heads,
        st.fixed_dictionaries(rotary, optional={"head_dim": st.just(10)}),
        attention_bias,
        st.just({"qk_norm": "head"}),
    ),
    "olmo2": merged(
        heads, st.fixed_dictionaries(rotary), attention_bias, st.just({"qk_norm": "full", "norm_position": "reordered"})
    ),
    "olmoe": merged(
        heads,
        st.fixed_dictionaries({**rotary, "d_ff": st.none(), "moe": experts}),
        attention_bias,
        st.just({"qk_norm": "full", "ffn": "moe"}),
    ),
    "phi": merged(
        heads,
        st.fixed_dictionaries({**rotary, "partial_rotary_factor": st.sampled_from([0.5, 1.0])}),
        st.sampled_from(["none", "head"]).map(lambda value: {"qk_norm": value}),
        st.just({**LEARNED, "positions": "rotary", "parallel_residual": True, "shared_norm": True, "head_bias": True}),
        st.just({"qkv_bias": True, "attention_output_bias": True, "ffn_bias": True}),
    ),
    "gpt2": merged(
        one_width,
        st.fixed_dictionaries(common),
        st.just({**LEARNED, "qkv_bias": True, "attention_output_bias": True, "ffn_bias": True}),
    ),
    "opt": merged(
        one_width,
        st.fixed_dictionaries({**common, "norm_eps": st.just(1e-5), "norm_position": st.sampled_from(["pre", "post"])}),
        both("qkv_bias", "attention_output_bias", "ffn_bias"),
        st.just({**LEARNED, "position_offset": 2}),
    ),
}


def close(actual, expected, tolerance=1e-4):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def perturbed(model: Transformer) -> Transformer:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def load_theirs(directory: Path):
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return theirs.eval()


def random_ids(config: ModelConfig, rows: int = 3) -> torch.Tensor:
    return torch.randint(0, config.vocab_size, (rows, LENGTH), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("family", FAMILIES)
@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # shrinking takes minutes, and says no more
)
@given(data=st.data())
@torch.no_grad()
def test_logits_equal_those_of_transformers_for_every_combination_of_features(family, data):
    config = ModelConfig(**data.draw(STRATEGIES[family]))
    model, ids = perturbed(Transformer(config).initialize(1)), random_ids(config)
    dynamic = config.rope_scaling is not None and config.rope_scaling.type == "dynamic"
    with TemporaryDirectory() as name:
        directory = Path(name)
        assert save_pretrained(model, directory) == family
        theirs = load_theirs(directory)
        full = theirs(ids).logits
        close(model(ids).logits_BTV, full)
        close(from_pretrained(directory)(ids).logits_BTV, full)

        lengths = torch.tensor([LENGTH, 1, 9])[:, None]
        left, right = torch.arange(LENGTH) >= LENGTH - lengths, torch.arange(LENGTH) < lengths
        for mask in (left, right):
            positions = {} if family == "opt" else {"position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}
            found = model(ids * mask, attention_mask_BT=mask).logits_BTV
            if dynamic:  # there, a row's frequencies depend on the rows beside it
                for row in range(3):
                    alone = load_theirs(directory)(ids[row][mask[row]][None]).logits[0]
                    close(found[row][mask[row]], alone)
            else:
                expected = theirs(ids * mask, attention_mask=mask.long(), **positions).logits
                close(found[mask], expected[mask])

        theirs = load_theirs(directory)  # afresh: with dynamic scaling its frequencies depend on what it has seen
        cache, past, parts = KVCache(config, 3, LENGTH), None, ([], [])
        for piece in ids.split([5, 1, 1, 4, 3], 1):
            parts[0].append(model(piece, cache=cache).logits_BTV)
            out = theirs(piece, past_key_values=past, use_cache=True)
            parts[1].append(out.logits)
            past = out.past_key_values
        close(torch.cat(parts[0], 1), torch.cat(parts[1], 1))


SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
}
THEIR_CONFIGS = {
    "llama": transformers.LlamaConfig(**SMALL, rope_theta=700.0),
    "llama with defaults": transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        tie_word_embeddings=True,
    ),
    "qwen2": transformers.Qwen2Config(**SMALL),
    "qwen3": transformers.Qwen3Config(**SMALL, head_dim=16),
    "olmo2": transformers.Olmo2Config(**SMALL, pad_token_id=None, eos_token_id=1),
    "olmoe": transformers.OlmoeConfig(**SMALL, num_experts=6, num_experts_per_tok=2, pad_token_id=None, eos_token_id=1),
    "phi": transformers.PhiConfig(**SMALL, qk_layernorm=True),
    "gpt2": transformers.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
    ),
    "opt": transformers.OPTConfig(
        vocab_size=50,
        hidden_size=32,
        ffn_dim=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
    "opt, norms after": transformers.OPTConfig(
        vocab_size=50,
        hidden_size=32,
        ffn_dim=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        do_layer_norm_before=False,
    ),
}


def their_model(config, auto=transformers.AutoModelForCausalLM):
    torch.manual_seed(0)
    theirs = auto.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return theirs


@pytest.mark.parametrize("name", THEIR_CONFIGS)
@torch.no_grad()
def test_models_that_transformers_saved_give_the_same_logits_here(name, tmp_path):
    theirs = their_model(THEIR_CONFIGS[name])
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = from_pretrained(tmp_path)
    ids = random_ids(model.config)
    close(model(ids).logits_BTV, theirs(ids).logits)


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
@torch.no_grad()
def test_a_checkpoint_of_the_body_alone_is_read(name, tmp_path):
    """The published `gpt2` has tensors `wte.weight`, `h.0...` without the prefix of its class."""
    theirs = their_model(THEIR_CONFIGS["llama with defaults" if name == "llama" else name])
    theirs.base_model.save_pretrained(tmp_path)
    model = from_pretrained(tmp_path)
    ids = random_ids(model.config)
    close(model(ids).hidden_BTD, theirs.base_model(ids).last_hidden_state)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_those_of_transformers(family, tmp_path):
    model = random_model(family, **({} if family == "olmoe" else {"num_layers": 3}))
    save_pretrained(model, tmp_path)
    theirs = load_theirs(tmp_path)
    ids = random_ids(model.config)
    model(ids[:, :-1], labels_BT=ids[:, 1:]).loss.mean.backward()
    theirs(ids, labels=ids).loss.backward()
    with torch.no_grad():
        for parameter in (*model.parameters(), *theirs.parameters()):
            parameter.copy_(parameter.grad)
    save_pretrained(model, tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    expected = from_pretrained(tmp_path / "theirs")
    for name, gradient in model.named_parameters():
        close(gradient, expected.get_parameter(name), 1e-5)


SEQUENCE = transformers.AutoModelForSequenceClassification


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "olmo2", "gpt2", "opt", "phi"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_scores_equal_those_of_transformers_with_either_padding(family, side, tmp_path):
    model = random_model(family, num_labels=3)
    assert save_pretrained(model, tmp_path, tokens={"pad_token_id": 0}) == family
    theirs = SEQUENCE.from_pretrained(tmp_path).eval()
    ids = random_ids(model.config).clamp(min=1)
    lengths = torch.tensor([LENGTH, 1, 9])[:, None]
    mask = torch.arange(LENGTH) >= LENGTH - lengths if side == "left" else torch.arange(LENGTH) < lengths
    positions = {} if family == "opt" else {"position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}
    scores = model(ids * mask, attention_mask_BT=mask).scores_BC
    close(scores, theirs(ids * mask, attention_mask=mask.long(), **positions).logits)
    close(from_pretrained(tmp_path)(ids * mask, attention_mask_BT=mask).scores_BC, scores, 1e-6)


@torch.no_grad()
def test_a_classifier_of_transformers_gives_the_same_scores_here(tmp_path):
    config = transformers.LlamaConfig(**SMALL, num_labels=4, pad_token_id=0)
    theirs = their_model(config, SEQUENCE)
    theirs.save_pretrained(tmp_path)
    model = from_pretrained(tmp_path)
    ids = random_ids(model.config).clamp(min=1)
    close(model(ids).scores_BC, theirs(ids).logits)


@torch.no_grad()
def test_a_language_model_can_be_given_a_fresh_scalar_head(tmp_path):
    model = random_model("llama", tie_embeddings=False)
    save_pretrained(model, tmp_path)
    first, again, other = (from_pretrained(tmp_path, num_labels=2, seed=seed) for seed in (1, 1, 2))
    ids = random_ids(model.config)
    assert first(ids).scores_BC.shape == (3, 2)
    assert torch.equal(first(ids).scores_BC, again(ids).scores_BC)
    assert not torch.equal(first(ids).scores_BC, other(ids).scores_BC)
    close(first(ids).hidden_BTD, model(ids).hidden_BTD, 1e-6)
    assert family_of(first.config).classifier == "LlamaForSequenceClassification"


def test_older_and_newer_keys_of_rotary_scaling_are_read(tmp_path):
    model = random_model("llama", rope_scaling={"type": "llama3", "factor": 4.0, "original_max_seq_len": 8})
    save_pretrained(model, tmp_path)
    path = tmp_path / "config.json"
    found = json.loads(path.read_text())
    for dropped in ("rope_parameters", "rope_scaling"):
        path.write_text(json.dumps({key: value for key, value in found.items() if key != dropped}))
        assert from_pretrained(tmp_path).config == model.config


PUBLISHED = {
    "gpt2": 124_439_808,
    "opt-125m": 125_239_296,
    "SmolLM2-135M": 134_515_008,
    "Llama-3.2-1B": 1_235_814_400,
    "Qwen3-0.6B": 596_049_920,
    "OLMo-2-1B": 1_484_916_736,
    "OLMoE-1B-7B": 6_919_161_856,
    "OLMo-1B-dense-twin": 1_279_920_128,
    "OLMoE-tiny": 1_912_960,
    "OLMoE-tiny-dense-twin": 725_120,
}
ACTIVE = {"OLMoE-1B-7B": 1_282_017_280, "OLMoE-tiny": 733_312}
NO_FAMILY = (
    "OLMo-1B-dense-twin",
    "OLMoE-tiny-dense-twin",
)  # RMSNorm before and QK-norm over the whole width, but dense


@pytest.mark.parametrize("name", PRESETS)
def test_published_shapes_have_the_published_number_of_parameters(name):
    config = ModelConfig(preset=name)
    with torch.device("meta"):
        model = Transformer(config)
        family = family_of(config)
        assert (family is None) == (name in NO_FAMILY)
        if family is not None:
            theirs = transformers.AutoModelForCausalLM.from_config(
                transformers.AutoConfig.for_model(**_settings(config, family))
            )
            assert theirs.num_parameters() == PUBLISHED[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name] == config.num_parameters()
    assert config.num_parameters(active=True) == ACTIVE.get(name, PUBLISHED[name])


def _settings(config, family):
    from lmlab.models.formats.settings import to_settings

    return to_settings(config, family)


UPCYCLED = {  # the family of the dense model, and those of its mixture, with and without weights that add up to 1
    "llama": ("mixtral", "qwen2_moe"),
    "qwen2": ("qwen2_moe", "qwen2_moe"),
    "qwen3": ("qwen3_moe", "qwen3_moe"),
    "olmo2": ("flex_olmo", "flex_olmo"),
}


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("family", UPCYCLED)
@torch.no_grad()
def test_upcycled_models_leave_with_the_same_logits(family, normalized, tmp_path):
    settings = UpcycleConfig(num_experts=4, top_k=2, noise=0.5, preserve_function=normalized)
    model = upcycle(random_model(family), settings)
    assert save_pretrained(model, tmp_path) == UPCYCLED[family][not normalized]
    ids = random_ids(model.config)
    expected = model(ids).logits_BTV
    theirs = load_theirs(tmp_path)
    close(theirs(ids).logits, expected)
    close(from_pretrained(tmp_path)(ids).logits_BTV, expected, 1e-6)
    theirs.save_pretrained(tmp_path / "again")
    close(from_pretrained(tmp_path / "again")(ids).logits_BTV, expected, 1e-6)


def test_a_shared_expert_with_a_gate_is_refused_by_name(tmp_path):
    config = transformers.Qwen2MoeConfig(**SMALL, num_experts=4, shared_expert_intermediate_size=24)
    their_model(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="shared_expert_intermediate_size = 24"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("llama", {"ffn_bias": True, "qk_norm": "head"}, 'the nearest, llama, lacks qk_norm: "head".'),
        ("olmo2", {"qkv_bias": True}, "olmo2, lacks qkv_bias without attention_output_bias."),
        (
            "olmoe",
            {"moe": {"num_experts": 4, "top_k": 2, "expert_hidden_size": 8, "num_shared_experts": 1}},
            "olmoe, lacks",
        ),
        ("llama", {"attention_soft_cap": 2.0}, "llama, lacks attention_soft_cap: 2.0."),
    ],
)
def test_what_keeps_a_model_from_a_family_is_named(kind, changes, reason, tmp_path):
    model = random_model(kind, **changes)
    assert save_pretrained(model, tmp_path) == "lmlab"
    assert reason in why_no_family(model.config)
    assert convert(tmp_path, tmp_path / "again").why_native == why_no_family(model.config)
    with pytest.raises(ValueError, match="llama expresses"):
        why_no_family(random_model("llama").config)


def test_attention_sinks_are_refused_by_name(tmp_path):
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "num_local_experts": 4}
    transformers.GptOssConfig(**sizes).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="'gpt_oss' is not supported: its attention has sinks"):
        from_pretrained(tmp_path)
