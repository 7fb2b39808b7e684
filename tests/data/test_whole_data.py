"""Nothing of a data set is left out without a word: archives end to end, parts that are missing."""

import io
import json
import tarfile

import pytest

from lmlab.data import Reject, source_settings
from lmlab.data.sources.finding.kinds import find_source
from lmlab.data.sources.reading.parts import missing_parts
from lmlab.files import DamagedError


def read(path, **settings):
    chosen = {**source_settings(str(path), {}), **settings}
    return list(find_source(chosen.pop("kind"))(**chosen).read())


def archive(names, format=tarfile.GNU_FORMAT):
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=format) as file:
        for name in names:
            data = f"text of {name}".encode()
            member = tarfile.TarInfo(f"{name}.txt")
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return target.getvalue()


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_laid_end_to_end_are_read_to_their_end(tmp_path, format):
    first, second = archive("abc", format), archive("d", format)
    (tmp_path / "x.tar").write_bytes(first + second + bytes(5120) + archive("ef" * 200, format))
    texts = [each.text for each in read(tmp_path / "x.tar")]
    assert texts == [f"text of {name}" for name in "abcd" + "ef" * 200]


@pytest.mark.parametrize("rest", [b"junk" * 300, b"\xff" * 512, archive("d")[:700]])
def test_what_follows_an_archive_and_is_none_is_damage(tmp_path, rest):
    (tmp_path / "x.tar").write_bytes(archive("abc") + rest)
    with pytest.raises(DamagedError, match=r"x.tar"):
        read(tmp_path / "x.tar")
    kept = read(tmp_path / "x.tar", damaged="keep")
    assert [each.text for each in kept if not isinstance(each, Reject)][:3] == [f"text of {name}" for name in "abc"]


def test_a_part_that_is_missing_is_named(tmp_path):
    for number in (0, 2):
        (tmp_path / f"train-0000{number}-of-00003.jsonl").write_text(json.dumps({"text": f"part {number}"}) + "\n")
    with pytest.raises(
        DamagedError, match=r"train-00001-of-00003.jsonl' is damaged: it is not there, though 2 other files"
    ):
        read(tmp_path)
    with pytest.raises(DamagedError, match="00001-of-00003"):
        read(tmp_path / "train-*.jsonl")
    assert [each.text for each in read(tmp_path, damaged="keep")] == ["part 0", "part 2"]
    assert [each.text for each in read(tmp_path / "train-00002-of-00003.jsonl")] == ["part 2"]
    assert len(read(tmp_path / "train-0000[02]-of-00003.jsonl")) == 2
    (tmp_path / "train-00001-of-00003.jsonl").write_text(json.dumps({"text": "part 1"}) + "\n")
    assert len(read(tmp_path)) == 3


def test_a_few_parts_of_many_are_a_choice_that_is_told(tmp_path, capsys):
    (tmp_path / "c4-train.00000-of-01024.jsonl").write_text(json.dumps({"text": "part"}) + "\n")
    assert len(read(tmp_path)) == 1
    assert "1023 parts are missing" in " ".join(capsys.readouterr().err.split())


def test_numbers_from_one_and_several_sets_are_told_apart():
    whole = [f"d/a-{number:05}-of-00002.parquet" for number in (1, 2)]
    assert missing_parts("d", whole) == []
    assert missing_parts("d", [*whole, "d/b-000-of-002.parquet"]) == ["d/b-001-of-002.parquet"]
    assert missing_parts("d", ["d/one-of-many.txt", "d/x-5-of-6.txt"]) == []
