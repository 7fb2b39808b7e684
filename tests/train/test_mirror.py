"""A copy of the checkpoints on another file system, from which a run goes on elsewhere."""

from __future__ import annotations

import shutil
import uuid

import fsspec
import pytest
from counting import counting_trainer

from lmlab.errors import LmlabError, UserError
from lmlab.train import TrainerConfig, checkpoints, read_metrics, verify_checkpoint

_SETTINGS = {
    "batch_size": 4,
    "precision": "fp32",
    "device": "cpu",
    "log_every": 1,
    "checkpoint_every": 2,
    "keep_checkpoints": 2,
}


def _losses(directory):
    return [(row["step"], row["loss"]) for row in read_metrics(directory / "metrics.jsonl")]


@pytest.mark.parametrize("kind", ["memory", "file"])
@pytest.mark.parametrize("background", [False, True])
def test_a_run_goes_on_from_its_mirror_where_nothing_else_is_left(tmp_path, kind, background):
    url = f"memory://{uuid.uuid4()}/run" if kind == "memory" else f"file://{tmp_path}/mirror"
    counting_trainer(tmp_path / "whole", TrainerConfig(steps=10, **_SETTINGS)).fit()
    first = TrainerConfig(steps=10, mirror=url, background_checkpoints=background, **_SETTINGS)

    def fail(model):
        raise RuntimeError("the machine is gone")

    with pytest.raises(RuntimeError):
        counting_trainer(tmp_path / "here", first.model_copy(update={"evaluate_every": 7}), evaluate=fail).fit()
    system, path = fsspec.core.url_to_fs(url)
    assert sorted(name.rpartition("/")[2] for name in system.ls(path, detail=False)) == [
        "step-00000004",
        "step-00000006",
    ]
    shutil.rmtree(tmp_path / "here" / "checkpoints")
    counting_trainer(tmp_path / "here", first).fit()
    assert _losses(tmp_path / "here") == _losses(tmp_path / "whole")
    assert sorted(name.rpartition("/")[2] for name in system.ls(path, detail=False)) == [
        "step-00000008",
        "step-00000010",
    ]


def test_a_run_goes_on_from_a_bucket(tmp_path, s3):
    constant = {"schedule": {"kind": "constant", "warmup_fraction": 0}, **_SETTINGS}
    counting_trainer(tmp_path / "whole", TrainerConfig(steps=10, **constant)).fit()
    s3.mkdir("bucket")
    for steps, names in ((6, ["step-00000004", "step-00000006"]), (10, ["step-00000008", "step-00000010"])):
        counting_trainer(tmp_path / "here", TrainerConfig(steps=steps, mirror="s3://bucket/runs/one", **constant)).fit()
        assert sorted(name.rpartition("/")[2] for name in s3.ls("bucket/runs/one", refresh=True)) == names
        shutil.rmtree(tmp_path / "here" / "checkpoints")
    assert _losses(tmp_path / "here") == _losses(tmp_path / "whole")


def test_half_a_checkpoint_on_the_mirror_is_none(tmp_path):
    url = f"file://{tmp_path}/mirror"
    config = TrainerConfig(steps=4, mirror=url, **_SETTINGS)
    counting_trainer(tmp_path / "a", config).fit()
    (tmp_path / "mirror" / "step-00000004" / "state.json").unlink()
    trainer = counting_trainer(tmp_path / "b", config)
    latest = trainer.checkpoints.latest()
    assert latest is not None and latest.name == "step-00000002"


def test_a_store_that_fails_for_a_moment_is_tried_again(tmp_path, monkeypatch):
    url, failures = f"memory://{uuid.uuid4()}/run", iter([True, False, True])
    system = fsspec.filesystem("memory")
    put = type(system).put_file

    def fail_at_first(self, *arguments, **options):
        if next(failures, False):
            raise ConnectionError("reset by peer")
        return put(self, *arguments, **options)

    monkeypatch.setattr(type(system), "put_file", fail_at_first)
    counting_trainer(tmp_path, TrainerConfig(steps=2, mirror=url, **_SETTINGS)).fit()
    shutil.rmtree(tmp_path / "checkpoints")
    latest = counting_trainer(tmp_path, TrainerConfig(steps=2, mirror=url, **_SETTINGS)).checkpoints.latest()
    assert latest is not None and verify_checkpoint(latest)["step"] == 2


def test_a_mirror_that_cannot_be_written_is_named_and_the_checkpoint_is_kept(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(LmlabError, match="mirror 'file://"):
        counting_trainer(
            tmp_path / "run", TrainerConfig(steps=4, mirror=f"file://{tmp_path}/file/x", **_SETTINGS)
        ).fit()
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000002"]


def test_an_unknown_file_system_is_refused_before_the_start(tmp_path):
    with pytest.raises(UserError, match="mirror 'nosuch://x'"):
        counting_trainer(tmp_path, TrainerConfig(steps=4, mirror="nosuch://x", **_SETTINGS))
