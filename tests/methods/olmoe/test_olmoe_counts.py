"""Published counts of routed tokens, and layouts of OLMo that read what they wrote."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lmlab.errors import UserError
from lmlab.methods.olmoe.cli import app
from lmlab.methods.olmoe.layouts import write_olmo
from lmlab.models import ModelConfig, Transformer, from_pretrained, save_pretrained

DATA = Path(os.environ.get("LMLAB_SHARED", "../shared")) / "data" / "olmoe"
SMALL = {"vocab_size": 61, "num_layers": 2, "d_model": 32, "num_heads": 4, "max_seq_len": 64, "tie_embeddings": False}
MOE = {"ffn": "moe", "moe": {"num_experts": 4, "top_k": 2, "expert_hidden_size": 24}}


def rows(name):
    with open(DATA / name) as file:
        return list(csv.DictReader(file))


@pytest.mark.skipif(not DATA.exists(), reason="needs the published counts (LMLAB_SHARED)")
def test_figures_of_the_published_counts_are_the_expected_ones(tmp_path):
    out = tmp_path / "counts.json"
    result = CliRunner().invoke(app, ["counts", str(DATA / "routing_counts.npz"), "--out", str(out)])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    for row in rows("expected_load_summary.csv"):
        model = found[row["model"]]
        at = model["domains"].index(row["domain"]), model["layers"].index(int(row["layer"]))
        for name in (
            "max_over_mean",
            "min_over_mean",
            "normalized_entropy",
            "n_experts_over_2x",
            "n_experts_under_half",
        ):
            theirs = name.replace("normalized", "normalised")  # as the table of expected values spells it
            assert model["load"][name][at[0]][at[1]] == pytest.approx(float(row[theirs]), abs=1e-5)
    for row in rows("expected_domain_specialization.csv"):
        model = found[row["model"]]
        at = model["domains"].index(row["domain"]), model["layers"].index(int(row["layer"]))
        share = model["domain_specialization"][at[0]][at[1]][int(row["expert"])]
        assert 100 * share == pytest.approx(float(row["ds_topk_percent"]), abs=1e-3)


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"something": np.zeros(3)}, "no array expert_counts"),
        ({"a/expert_counts": np.zeros((2, 3), int)}, "no array of counts"),
        ({"expert_counts": np.zeros((2, 3, 4))}, "no array of counts"),
        ({"expert_counts": -np.ones((2, 3, 4), int)}, "no array of counts"),
        ({"expert_counts": np.ones((2, 3, 4), int), "domains": np.array(["x"])}, "are named"),
        ({"expert_counts": np.ones((2, 3, 4), int), "expert_counts_top1": np.ones((2, 3, 5), int)}, "another shape"),
    ],
)
def test_other_arrays_are_refused_by_name(arrays, named, tmp_path):
    np.savez(tmp_path / "counts.npz", **arrays)
    result = CliRunner().invoke(app, ["counts", str(tmp_path / "counts.npz")])
    assert isinstance(result.exception, UserError) and named in str(result.exception)


@pytest.mark.parametrize("kind", ["olmo", "olmo-core"])
@pytest.mark.parametrize(
    "changes", [{}, MOE, {"qk_norm": "full", "num_kv_heads": 2, **MOE}], ids=["dense", "moe", "qk"]
)
@torch.no_grad()
def test_convert_reads_what_it_wrote(kind, changes, tmp_path):
    model = Transformer(ModelConfig(**SMALL, **changes)).initialize(1).eval()
    save_pretrained(model, tmp_path / "hf")
    for arguments in (["hf", "there", "--to", kind], ["there", "back"]):
        paths = [str(tmp_path / each) if not each.startswith("-") else each for each in arguments[:2]]
        result = CliRunner().invoke(app, ["convert", *paths, *arguments[2:]])
        assert result.exit_code == 0, result.exception
    ids = torch.arange(20)[None]
    torch.testing.assert_close(from_pretrained(tmp_path / "back")(ids).logits_BTV, model(ids).logits_BTV)


def test_what_a_layout_has_no_word_for_is_refused(tmp_path):
    model = Transformer(ModelConfig(**SMALL | {"num_layers": 1}, activation="gelu"))
    with pytest.raises(UserError, match="no word for this model's activation"):
        write_olmo(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
