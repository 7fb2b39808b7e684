"""Where files are written before they come to their places."""

from pathlib import Path

from lmlab.files import atomic_path, draft_of


def test_containers_with_equal_numbers_of_processes_write_to_different_drafts(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    assert draft_of(target) != draft_of(target)  # both of this process, whose number is one
    with atomic_path(target) as first:
        first.write_text("first")
        with atomic_path(target) as second:
            second.write_text("second")
        assert target.read_text() == "second"
    assert target.read_text() == "first" and list(tmp_path.iterdir()) == [target]


def test_what_fails_leaves_the_former_file_and_no_draft(tmp_path: Path) -> None:
    target = tmp_path / "weights"
    target.write_text("old")
    try:
        with atomic_path(target) as draft:
            draft.write_text("half")
            raise OSError("No space left on device")
    except OSError:
        pass
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]
