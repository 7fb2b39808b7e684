"""Checkpoints of the reference implementation go both ways, whole and as adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from compressors import by_formula, small
from safetensors.torch import load_file, save_file

from lmlab.errors import LmlabError, UserError
from lmlab.files import read_mapping, write_json
from lmlab.methods.autocompressor import AutoCompressor
from lmlab.methods.autocompressor.compressor import convert as conversion
from lmlab.methods.autocompressor.compressor.convert import (
    convert,
    read_reference,
    write_reference,
    write_reference_adapters,
)
from lmlab.models import LoRAConfig, add_lora, from_pretrained, remove_lora, save_lora, save_pretrained

_IDS = ((7 * torch.arange(24) + 3) % 37)[None]


@pytest.mark.parametrize("kind", ["opt", "llama"])
@pytest.mark.parametrize("accumulate", [True, False])
def test_whole_checkpoints_go_both_ways(lmlab: Callable[..., Any], kind: str, accumulate: bool, tmp_path: Path) -> None:
    compressor = by_formula(kind, accumulate).float()
    write_reference(compressor, tmp_path / "reference")
    settings = read_mapping(tmp_path / "reference" / "config.json")
    assert settings["summary_length"] == 3 and settings["accumulate_summary"] is accumulate
    tensors = load_file(tmp_path / "reference" / "model.safetensors")
    assert tensors["embed_summary.weight"].shape == (3, 16)
    assert lmlab("compress", "convert", tmp_path / "reference", tmp_path / "ours").code == 0
    again = AutoCompressor.load(tmp_path / "ours")
    assert again.config.accumulate is accumulate
    a, b = (c(_IDS, segment_lengths=[8, 6, 10], output_summary=True) for c in (compressor, again))
    assert torch.equal(a.logits_BTV, b.logits_BTV) and torch.equal(a.summary.vectors_BPD, b.summary.vectors_BPD)
    assert lmlab("compress", "convert", tmp_path / "ours", tmp_path / "back").code == 0
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("most", [None, 4_000])
def test_the_reference_adds_nothing_to_vectors_of_opt(
    tmp_path: Path, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It adds row 1 of the positions, which only OPT's own checkpoints have as zeros."""
    if most is not None:
        monkeypatch.setattr(conversion, "save_pretrained", partial(save_pretrained, max_shard_bytes=most))
    compressor = small("opt").float()
    write_reference(compressor, tmp_path / "r")
    files = sorted((tmp_path / "r").glob("*.safetensors"))
    assert len(files) == 1 if most is None else len(files) > 2
    tensors = {name: each for file in files for name, each in load_file(file).items()}
    table = tensors["model.decoder.embed_positions.weight"]
    assert not table[1].any() and table[2].any()
    again = read_reference(tmp_path / "r")
    a, b = (c(_IDS, segment_lengths=[8, 6, 10]).logits_BTV for c in (compressor, again))
    assert torch.equal(a, b)


def test_a_checkpoint_that_does_not_say_how_it_keeps_summaries_is_refused(tmp_path: Path) -> None:
    write_reference(by_formula("opt").float(), tmp_path / "r")
    settings = read_mapping(tmp_path / "r" / "config.json")
    write_json(tmp_path / "r" / "config.json", {k: v for k, v in settings.items() if k != "accumulate_summary"})
    with pytest.raises(UserError, match="accumulate_summary"):
        read_reference(tmp_path / "r")
    write_json(tmp_path / "r" / "config.json", settings | {"summary_length": 4})
    with pytest.raises(LmlabError, match="shape"):
        read_reference(tmp_path / "r")
    tensors = load_file(tmp_path / "r" / "model.safetensors")
    write_json(tmp_path / "r" / "config.json", settings)
    save_file({name: each for name, each in tensors.items() if "summary" not in name}, tmp_path / "r/model.safetensors")
    with pytest.raises(LmlabError, match="lacks embed_summary"):
        read_reference(tmp_path / "r")
    save_file(tensors | {"other.weight": torch.zeros(2)}, tmp_path / "r" / "model.safetensors")
    with pytest.raises(LmlabError, match="other"):
        read_reference(tmp_path / "r")
    torch.save(tensors, tmp_path / "r" / "pytorch_model.bin")
    (tmp_path / "r" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="pickle"):
        read_reference(tmp_path / "r")
    assert read_reference(tmp_path / "r", allow_pickle=True).summary_length == 3


@pytest.mark.parametrize("live", [False, True])
def test_adapters_go_both_ways(lmlab: Callable[..., Any], live: bool, tmp_path: Path) -> None:
    compressor = small("llama").float()
    save_pretrained(compressor.model, tmp_path / "base")
    add_lora(compressor.model, LoRAConfig(rank=2, targets=("query", "key", "value", "output")), 0)
    with torch.no_grad():
        for name, each in compressor.model.named_parameters():
            if name.endswith("lora_b"):
                each.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    save_lora(compressor.model, tmp_path / "adapters", base=str(tmp_path / "base"))
    unmerged = compressor(_IDS, segment_lengths=[8, 6, 10]).logits_BTV
    remove_lora(compressor.model, merge=True)
    write_reference_adapters(tmp_path / "adapters", compressor, tmp_path / "reference")
    if live:  # the names of a live state dict
        path = tmp_path / "reference" / "adapter_model.safetensors"
        tensors = load_file(path)
        table = tensors.pop("base_model.model.embed_summary.weight")
        save_file(tensors | {"base_model.model.embed_summary.modules_to_save.default.weight": table}, path)
    assert lmlab("compress", "convert", tmp_path / "reference", tmp_path / "ours").code == 0
    again = AutoCompressor.load(tmp_path / "ours")
    assert torch.allclose(again(_IDS, segment_lengths=[8, 6, 10]).logits_BTV, unmerged, atol=5e-4)
    (tmp_path / "reference" / "config.json").unlink()
    found = lmlab("compress", "convert", tmp_path / "reference", tmp_path / "other")
    assert found.code == 2 and "--accumulate" in found.err
    assert lmlab("compress", "convert", tmp_path / "reference", tmp_path / "other", "--replace").code == 0
    assert json.loads((tmp_path / "other" / "compressor.json").read_text())["accumulate"] is False


def test_what_the_reference_has_not_is_not_written_for_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="families opt and llama"):
        write_reference(small("gqa").float(), tmp_path / "r")
    with pytest.raises(UserError, match=r"vector_scale 0\.5 cannot be written"):
        write_reference(small("llama", vector_scale=0.5).float(), tmp_path / "r")
    assert not (tmp_path / "r").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is there already"):
        convert(tmp_path / "nowhere", tmp_path / "file")
    save_pretrained(small("llama").float().model, tmp_path / "plain")
    assert from_pretrained(tmp_path / "plain").config.num_layers == 2
    with pytest.raises(UserError, match="no summary_length"):
        read_reference(tmp_path / "plain")
