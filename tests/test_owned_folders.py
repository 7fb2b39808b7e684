"""Folders that one command owns."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from pathlib import Path

import pytest

from lmlab.data import record_source
from lmlab.errors import UserError
from lmlab.files import atomic_file, find_files, owned_folder
from lmlab.files.owned import only_writer


def write(folder: Path, files: dict[str, str], command: str = "lmlab one", **options: object) -> None:
    with owned_folder(folder, command, **options) as owned:
        for name, content in files.items():
            owned.new(name, data=name.endswith(".jsonl")).write_text(content)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith("lmlab-")}


def test_a_second_content_replaces_the_first_and_leaves_what_others_put_there(tmp_path):
    write(tmp_path, {"0-of-2.jsonl": "{}", "1-of-2.jsonl": "{}", "report.json": "{}"})
    (tmp_path / "mine.jsonl").write_text("{}")
    write(tmp_path, {"0-of-1.jsonl": '{"text": "new"}'})
    assert names(tmp_path) == {"0-of-1.jsonl", "mine.jsonl"}
    assert find_files(str(tmp_path)) == [str(tmp_path / "0-of-1.jsonl")]  # readers trust the manifest
    assert find_files(str(tmp_path / "*.jsonl")) == [str(tmp_path / "0-of-1.jsonl")]
    assert find_files(str(tmp_path / "mine.jsonl")) == [str(tmp_path / "mine.jsonl")]
    assert [record for _, record in record_source(str(tmp_path)).records()] == [{"text": "new"}]
    assert len(find_files(str(tmp_path.parent), (".jsonl",))) >= 1  # also from a folder above


def test_a_failure_leaves_the_former_content_as_it_was(tmp_path):
    write(tmp_path, {"a.jsonl": "1"})
    with pytest.raises(IsADirectoryError):
        write(tmp_path, {"a.jsonl": "2", "": "3"})
    assert (tmp_path / "a.jsonl").read_text() == "1" and names(tmp_path) == {"a.jsonl"}
    (tmp_path / ".writing-1.tmp").mkdir()  # of a process that was killed
    (tmp_path / ".writing-1.tmp" / "b.jsonl").write_text("3")
    assert [Path(each).name for each in find_files(str(tmp_path))] == ["a.jsonl"]
    write(tmp_path, {"c.jsonl": "1"})
    assert names(tmp_path) == {"c.jsonl"}


def test_a_change_that_was_cut_off_is_not_read_and_can_be_repeated(tmp_path):
    write(tmp_path, {"a.jsonl": "1", "b.jsonl": "1"})
    manifest = json.loads((tmp_path / "lmlab-files.json").read_text())
    stale = {"done": False, "data": ["c.jsonl"], "stale": ["a.jsonl", "b.jsonl", "../other", ".."]}
    (tmp_path / "lmlab-files.json").write_text(json.dumps(manifest | stale))
    with pytest.raises(UserError, match=r"cut off[\s\S]*lmlab one"):
        find_files(str(tmp_path))
    write(tmp_path, {"c.jsonl": "1"})
    assert names(tmp_path) == {"c.jsonl"} and tmp_path.is_dir()


def test_who_reads_while_the_files_are_changed_waits_for_it(tmp_path, monkeypatch):
    from lmlab.files import owned

    write(tmp_path, {"a.jsonl": "1", "b.jsonl": "1"})
    manifest = json.loads((tmp_path / "lmlab-files.json").read_text())
    looks = []

    def pause(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            (tmp_path / "lmlab-files.json").write_text(json.dumps(manifest | {"data": ["b.jsonl"]}))

    monkeypatch.setattr(owned.time, "sleep", pause)
    unsettled = {"done": False, "data": ["b.jsonl"], "stale": ["a.jsonl"]}
    (tmp_path / "lmlab-files.json").write_text(json.dumps(manifest | unsettled))
    assert find_files(str(tmp_path)) == [str(tmp_path / "b.jsonl")] and len(looks) == 3
    looks.clear()
    (tmp_path / "lmlab-files.json").write_text(json.dumps(manifest | {"done": False, "data": [], "stale": []}))
    with pytest.raises(UserError, match="under way"):  # a first content may take hours
        find_files(str(tmp_path))
    assert not looks


def test_another_command_and_a_folder_that_is_read_are_refused(tmp_path):
    write(tmp_path / "out", {"a.jsonl": "1"})
    with pytest.raises(UserError, match="`lmlab one` wrote"):
        write(tmp_path / "out", {"a.jsonl": "2"}, "lmlab two")
    with pytest.raises(UserError, match="what is read"):
        write(tmp_path / "out", {"a.jsonl": "2"}, reads=[str(tmp_path / "out/a.jsonl")])
    with pytest.raises(UserError, match="is a file"):
        write(tmp_path / "out/a.jsonl", {})
    assert (tmp_path / "out/a.jsonl").read_text() == "1"


def test_two_writers_at_once_do_not_spoil_each_other_s_work(tmp_path):
    with owned_folder(tmp_path, "lmlab one") as owned:
        owned.new("a.jsonl").write_text("1")
        with pytest.raises(UserError, match="Another process is writing"):
            write(tmp_path, {"b.jsonl": "2"})
    assert names(tmp_path) == {"a.jsonl"}
    write(tmp_path, {"b.jsonl": "2"})
    assert names(tmp_path) == {"b.jsonl"}


def test_a_first_content_that_is_not_done_is_not_read_and_no_part_of_what_its_own_writer_reads(tmp_path):
    (tmp_path / "mine.jsonl").write_text("1")
    out = tmp_path / "out"
    left: dict[str, str] = {}

    def stopped():
        with owned_folder(out, "lmlab one") as owned:
            owned.new("a.jsonl").write_text("1")
            assert find_files(str(tmp_path)) == [str(tmp_path / "mine.jsonl")]
            left.update({path.name: path.read_text() for path in out.iterdir() if path.is_file()})
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        stopped()
    assert not out.exists()
    (out / ".writing-1.tmp").mkdir(parents=True)  # as a kill leaves it
    (out / ".writing-1.tmp" / "a.jsonl").write_text("1")
    for name, content in left.items():
        (out / name).write_text(content)
    for read in (out, tmp_path):
        with pytest.raises(UserError, match="cut off, or is under way"):
            find_files(str(read))
    write(out, {"b.jsonl": "2"})
    assert find_files(str(tmp_path)) == [str(tmp_path / "mine.jsonl"), str(out / "b.jsonl")]


def test_a_folder_that_another_command_has_written_meanwhile_is_refused(tmp_path, monkeypatch):
    """It came to its end between the look at the folder and the lock."""
    from lmlab.files import owned

    look = owned.check_owner

    def look_then_lose(*given):
        look(*given)
        monkeypatch.setattr(owned, "check_owner", look)
        with owned_folder(tmp_path, "lmlab other") as other:
            other.new("theirs.jsonl").write_text("{}\n")

    monkeypatch.setattr(owned, "check_owner", look_then_lose)
    with pytest.raises(UserError, match="lmlab other"), owned_folder(tmp_path, "lmlab one"):
        pass
    assert (tmp_path / "theirs.jsonl").exists()


def test_a_folder_on_a_file_system_that_locks_no_folders_has_one_writer_too(tmp_path, monkeypatch, caplog):
    """NFS locks files that are open for writing, and nothing else; some file systems lock nothing, and that is said."""
    flock, nothing = fcntl.flock, False

    def as_on_nfs(descriptor, how):
        if nothing or stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, "no locks")
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", as_on_nfs)
    with only_writer(tmp_path), pytest.raises(UserError, match="Another process is writing"), only_writer(tmp_path):
        pass
    with only_writer(tmp_path):  # the first one is done
        pass
    assert not caplog.text
    nothing = True
    with only_writer(tmp_path), only_writer(tmp_path):
        assert "has no locks" in caplog.text


def test_two_writers_with_one_process_number_leave_a_whole_file(tmp_path):
    """As in two containers, whose processes have the same numbers."""
    with atomic_file(tmp_path / "x", "w") as one:
        one.write("first ")
        one.flush()
        with atomic_file(tmp_path / "x", "w") as two:
            two.write("second")
        assert (tmp_path / "x").read_text() == "second"
        one.write("writer")
    assert (tmp_path / "x").read_text() == "first writer" and len(list(tmp_path.iterdir())) == 1
