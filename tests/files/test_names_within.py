"""What files are called within the location that means them."""

from pathlib import Path

import fsspec
import pytest

from lmlab.config import validate
from lmlab.data import SourceConfig, source_settings
from lmlab.files import find_files, names_within
from lmlab.redaction import redact


@pytest.mark.parametrize("folder", ["data", "data [v1]", "what?"])
@pytest.mark.parametrize("form", ["{}", "./{}", "{}/", "{}/../{}", "{}/sub/x.jsonl"])
def test_the_name_does_not_tell_where_a_folder_lies(
    folder: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Characters of globs may stand in the name of a folder that is there."""
    (tmp_path / folder / "sub").mkdir(parents=True)
    (tmp_path / folder / "sub/x.jsonl").write_text('{"text": "a"}\n')
    monkeypatch.chdir(tmp_path)
    written = form.format(folder, folder)
    wanted = "x.jsonl" if "/sub" in form else "sub/x.jsonl"
    for location in (written, f"{tmp_path}/{written}"):
        assert [names_within(location)(place) for place in find_files(location)] == [wanted]


def test_below_a_glob_names_begin_where_it_is_open(tmp_path: Path) -> None:
    for book in ("a", "b"):
        (tmp_path / book).mkdir()
        (tmp_path / book / "x.jsonl").write_text("")
    place = f"{tmp_path}/[ab]/*.jsonl"
    assert [names_within(place)(found) for found in find_files(place)] == ["a/x.jsonl", "b/x.jsonl"]


@pytest.mark.parametrize("location", ["memory://{}", "memory:///{}", "memory://{}/", "memory://{}/*/x.jsonl"])
def test_a_url_may_be_written_otherwise_than_its_file_system_does(location: str, tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    system.pipe_file(f"/{tmp_path.name}/sub/x.jsonl", b'{"text": "a"}\n')
    place = location.format(tmp_path.name)
    assert [names_within(place)(found) for found in find_files(place)] == ["sub/x.jsonl"]
    (document,) = validate(SourceConfig, source_settings(place, {}), "the source").read()
    assert document.group == "sub/x.jsonl:1"  # type: ignore[union-attr]


def test_places_are_told_with_their_secrets_or_without() -> None:
    location = "memory://user:secret@host/data"
    name = names_within(location)
    assert name(f"{location}/x.jsonl:3") == name(f"{redact(location)}/x.jsonl:3") == "x.jsonl:3"
