"""Adapters in the loop: checkpoints of them alone, resumed and shared out; stages that train and write them; plans."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from lora_worker import adapter_trainer
from safetensors.torch import load_file

from lmlab.data import Tokenizer
from lmlab.distributed import World
from lmlab.errors import Interrupted
from lmlab.files import read_json
from lmlab.models import LoRAConfig, ModelConfig, Transformer, add_lora, from_pretrained, load_lora, save_pretrained
from lmlab.models.lora.adapt import quantize_base
from lmlab.runs import Model
from lmlab.train import Optimizers, TrainerConfig, checkpoints, estimate, flops_per_token, read_metrics, whole_tensors

_LOOP = {
    "steps": 6,
    "batch_size": 8,
    "micro_batch_size": 4,
    "precision": "fp32",
    "device": "cpu",
    "log_every": 1,
    "checkpoint_every": 3,
    "optimizer": {"learning_rate": 1e-2},
}
_TARGETS = ("query", "value", "embedding", "experts")


def _losses(directory: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(directory / "metrics.jsonl")]


def test_checkpoints_hold_adapters_alone_and_resume_exactly(tmp_path):
    whole = adapter_trainer(tmp_path / "whole", TrainerConfig(**_LOOP), _TARGETS)
    whole.fit()
    assert _losses(tmp_path / "whole")[-1] < _losses(tmp_path / "whole")[0]
    short = adapter_trainer(tmp_path / "cut", TrainerConfig(**_LOOP), _TARGETS)
    train_step = short._train_step

    def stop_at_four(batch, stop):
        if short.step == 4:
            import signal

            stop.requested = signal.SIGTERM
        return train_step(batch, stop)

    short._train_step = stop_at_four
    with pytest.raises(Interrupted):
        short.fit()
    again = adapter_trainer(tmp_path / "cut", TrainerConfig(**_LOOP), _TARGETS)
    again.fit()
    assert _losses(tmp_path / "cut") == _losses(tmp_path / "whole")
    (file,) = checkpoints(tmp_path / "whole" / "checkpoints")[-1].glob("*.safetensors")
    saved = {name.removeprefix("model.") for name in load_file(file) if name.startswith("model.")}
    assert saved == set(whole.optimizers.parameters) and all("lora_" in name for name in saved)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this build of PyTorch has no gloo")
@pytest.mark.parametrize(
    "parallel", [{"kind": "fsdp"}, {"kind": "fsdp", "expert_parallel": 2}], ids=["fsdp", "experts"]
)
def test_two_processes_train_adapters_as_one_does(forkserver, tmp_path, parallel):
    one = adapter_trainer(tmp_path / "one", TrainerConfig(**_LOOP), _TARGETS)
    one.fit()
    (tmp_path / "two").mkdir()
    worker = Path(__file__).with_name("lora_worker.py")
    settings = {**_LOOP, "parallel": parallel, "targets": _TARGETS}
    done = forkserver.run(tmp_path / "two", json.dumps(settings), script=worker, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert _losses(tmp_path / "two") == pytest.approx(_losses(tmp_path / "one"), rel=1e-4)
    theirs = torch.load(tmp_path / "two" / "trained.pt", weights_only=True)
    ours = whole_tensors(one.model)
    assert theirs.keys() == ours.keys() and all("lora_" in name for name in ours)
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-4, rtol=1e-3)


_NEEDS_BITSANDBYTES = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs the package 'bitsandbytes'"
)
_SHAPE = ModelConfig(vocab_size=512, num_layers=4, d_model=128, num_heads=4, num_kv_heads=2, max_seq_len=256)
_MIXED = ModelConfig(
    **(_SHAPE.model_dump() | {"ffn": "moe", "moe": {"num_experts": 8, "top_k": 2, "expert_hidden_size": 64}})
)


@pytest.mark.parametrize(
    ("shape", "lora"),
    [
        (_SHAPE, LoRAConfig(rank=8)),
        (_SHAPE, LoRAConfig(rank=8, dropout=0.1)),
        (_SHAPE, LoRAConfig(rank=4, targets=("query", "value"))),
        (_SHAPE, LoRAConfig(rank=4, targets=("embedding", "down"), train_fully=("final_norm",))),
        (_MIXED, LoRAConfig(rank=4, targets=("query", "experts.down"))),
        pytest.param(_SHAPE, LoRAConfig(rank=4, quantize="nf4"), marks=_NEEDS_BITSANDBYTES),
        pytest.param(_MIXED, LoRAConfig(rank=4, quantize="int8", targets=("query",)), marks=_NEEDS_BITSANDBYTES),
    ],
    ids=["all", "dropout", "some", "embedding", "experts", "nf4", "int8"],
)
def test_plans_count_what_adapters_need(shape, lora):
    model = Transformer(shape).initialize(0)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    add_lora(model, lora)
    weights |= {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    config = TrainerConfig(steps=1, batch_size=2)
    optimizers = Optimizers(model, config.optimizer)
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(0, 512, (2, 256), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(ids, labels_BT=ids, document_ids_BT=torch.zeros_like(ids)).loss.sum
    loss.backward()
    optimizers.step()
    found = estimate(shape, 256, config, World(), torch.float32, lora)
    trained = list(optimizers.parameters.values())
    assert found.trained == sum(parameter.numel() for parameter in trained)
    assert found.gradients == sum(parameter.grad.nbytes for parameter in trained)
    whole_at_once = 4 * max(_SHAPE.d_ff, _SHAPE.d_model) * _SHAPE.d_model if lora.quantize else 0
    if lora.quantize and shape is _MIXED:
        whole_at_once = 4 * _SHAPE.d_model**2
    assert found.weights == sum(parameter.nbytes for parameter in model.parameters()) + whole_at_once
    moments = sum(tensor.nbytes for tensor in optimizers.state_tensors().values() if tensor.dim())
    assert found.optimizer == pytest.approx(moments, rel=0.01)
    held = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert held < found.activations < 2.5 * held
    whole = estimate(shape, 256, config, World(), torch.float32)
    assert found.memory < whole.memory or lora.dropout  # which keeps more than narrow frozen layers save
    assert 0.6 * shape.flops_per_token(256) < flops_per_token(shape, 256, lora) < 0.85 * shape.flops_per_token(256)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small model's directory with its tokenizer."""
    directory = tmp_path_factory.mktemp("base")
    tokenizer = Tokenizer.train(["the quick brown fox jumps over the lazy dog"] * 20, 300)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=2, d_model=32, num_heads=4, max_seq_len=64)
    save_pretrained(
        Transformer(config).initialize(0),
        directory,
        tokens={"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id},
    )
    tokenizer.save(directory)
    return directory


def _recipe(folder: Path, base: Path, **lora) -> Path:
    texts = [{"id": str(n), "text": f"the lazy dog number {n} sleeps under the tree"} for n in range(60)]
    documents = folder / "texts.jsonl"
    documents.write_text("".join(json.dumps(row) + "\n" for row in texts))
    pairs = folder / "pairs.jsonl"
    rows = [
        {
            "prompt": [{"role": "user", "content": f"say {n}"}],
            "chosen": [{"role": "assistant", "content": "the dog"}],
            "rejected": [{"role": "assistant", "content": "the fox"}],
        }
        for n in range(24)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loop = {"batch_size": 4, "precision": "fp32", "device": "cpu", "log_every": 1, "optimizer": {"learning_rate": 1e-2}}
    chat = {"template": "tulu"}
    stages = {
        "tokens": {"kind": "tokenize", "documents": str(documents), "tokenizer": str(base)},
        "tuned": {
            "kind": "train",
            "tokens": "tokens",
            "start": str(base),
            "seq_len": 32,
            "max_epochs": 50,
            "lora": {"rank": 4, **lora},
            "trainer": {**loop, "steps": 12},
        },
        "preferred": {
            "kind": "prefer",
            "records": str(pairs),
            "start": "tuned",
            "seq_len": 48,
            "chat": chat,
            "lora": {"rank": 2, "targets": ["query", "value"]},
            "trainer": {**loop, "steps": 4},
        },
    }
    path = folder / "lora.yaml"
    path.write_text(yaml.safe_dump({"name": "lora", "stages": stages}, sort_keys=False))
    return path


@pytest.mark.parametrize("lora", [{}, {"targets": ["embedding", "query"]}], ids=["projections", "tied-embedding"])
def test_stages_write_adapters_and_the_model_with_them(lmlab, base, tmp_path, lora):
    shown = lmlab("run", _recipe(tmp_path, base, **lora), "--out", tmp_path / "run")
    assert shown.code == 0, shown.err
    ids = torch.randint(5, 200, (2, 20), generator=torch.Generator().manual_seed(0))
    for stage, start in (("tuned", base), ("preferred", tmp_path / "run" / "tuned" / "model")):
        place = tmp_path / "run" / stage
        beside = from_pretrained(start)
        load_lora(beside, place / "adapters")
        newest = checkpoints(place / "checkpoints")[-1]
        with torch.no_grad():
            expected = beside(ids).logits_BTV
            torch.testing.assert_close(from_pretrained(place / "model")(ids).logits_BTV, expected, atol=1e-5, rtol=1e-5)
            found = Model.find(newest)
            torch.testing.assert_close(found.load()(ids).logits_BTV, expected, atol=1e-5, rtol=1e-5)
            assert found.load().config == found.config
            assert not torch.allclose(from_pretrained(start)(ids).logits_BTV, expected, atol=1e-3)
    results = read_json(tmp_path / "run" / "results.json")
    assert results["tuned"]["trained_parameters"] < results["tuned"]["parameters"] / 4
    rows = read_metrics(tmp_path / "run" / "tuned" / "metrics.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_the_plan_shows_what_adapters_need(lmlab, base, tmp_path):
    shown = lmlab("run", _recipe(tmp_path, base), "--out", tmp_path / "run", "--dry-run")
    assert shown.code == 0, shown.err
    text = " ".join((shown.out + shown.err).replace("│", " ").split())
    assert "of adapters are trained" in text and "memory: about" in text and "time: about" in text


def test_adapters_need_a_model(lmlab, base, tmp_path):
    path = _recipe(tmp_path, base)
    data = yaml.safe_load(path.read_text())
    del data["stages"]["tuned"]["start"]
    data["stages"]["tuned"]["model"] = {"vocab_size": 300, "num_layers": 1, "d_model": 32, "num_heads": 2}
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    shown = lmlab("run", path, "--out", tmp_path / "run")
    assert shown.code == 2 and "name it with 'start'" in shown.err


@_NEEDS_BITSANDBYTES
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_stages_train_beside_quantized_weights(lmlab, base, tmp_path, kind):
    path, run = _recipe(tmp_path, base, quantize=kind), tmp_path / "run"
    quantize = ("--set", f"preferred.lora.quantize={kind}")
    shown = lmlab("run", path, "--out", run, "--dry-run", *quantize)
    text = " ".join((shown.out + shown.err).replace("│", " ").split())
    assert shown.code == 0 and f"frozen linear layers as {kind}" in text, shown.err
    shown = lmlab("run", path, "--out", run, *quantize)
    assert shown.code == 0, shown.err
    ids = torch.randint(5, 200, (2, 20), generator=torch.Generator().manual_seed(0))
    for stage, start in (("tuned", base), ("preferred", run / "tuned" / "model")):
        beside = from_pretrained(start)
        quantize_base(beside, LoRAConfig(quantize=kind))
        load_lora(beside, run / stage / "adapters")
        with torch.no_grad():
            expected = beside(ids).logits_BTV
            for found in (run / stage / "model", checkpoints(run / stage / "checkpoints")[-1]):
                torch.testing.assert_close(Model.find(found).load()(ids).logits_BTV, expected, atol=1e-5, rtol=1e-5)
    rows = read_metrics(run / "tuned" / "metrics.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"]
    # the reference is the quantized model too: before anything is learned both are one, and the loss is log 2
    first = read_metrics(run / "preferred" / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_other_names_for_quantized_weights_lead_to_ours(lmlab, base, tmp_path):
    shown = lmlab("run", _recipe(tmp_path, base, load_in_4bit=True), "--out", tmp_path / "run")
    assert shown.code == 2 and "quantized by the key quantize: nf4 or int8" in shown.err


def test_quantized_weights_are_not_shared_out(lmlab, base, tmp_path, monkeypatch):
    monkeypatch.setattr("lmlab.stages.parts.adapters.world", lambda: World(size=2))
    shown = lmlab("run", _recipe(tmp_path, base, quantize="nf4"), "--out", tmp_path / "run", "--dry-run")
    assert shown.code == 2 and "are not shared out among processes" in shown.err
