"""Folders that one command owns: a manifest says which files are its result, and readers trust it, not the folder.

A command writes beside the old files and changes them for the new ones when all of these are there; so a folder holds
one result, never the mixture of two. A command that fails, or is killed before that change, leaves the former result as
it was; one that is killed within it leaves a folder that readers refuse until a command has written it anew.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from lmlab.errors import UserError
from lmlab.files.atomic import draft_of, read_mapping, sha256_json, write_json

MANIFEST = "lmlab-files.json"
_STAGING, _LOCK = "writing", ".lmlab-lock"
_TRIES = 20  # to read a folder that is changed meanwhile, which takes milliseconds
_PAUSE = 0.01  # seconds between two looks at a change that is under way
T = TypeVar("T")
_log = logging.getLogger(__name__)
_writing: set[Path] = set()  # folders that this process is writing: no part of what it reads


class OwnedFolder:
    """The new content of a folder, while it is written.

    Attributes:
        path: of the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._staging = draft_of(self.path / _STAGING)
        self._data: dict[str, bool] = {}

    def new(self, name: str, data: bool = True) -> Path:
        """Where to write a file of this name; it comes to its place when the command is done.

        Arguments:
            data: whether it holds records, which who reads the folder gets; not so for notes beside them.
        """
        assert Path(name).name == name or not name, f"'{name}' is no plain name"
        self._staging.mkdir(parents=True, exist_ok=True)
        self._data[name] = data
        return self._staging / name

    def _settle(self, command: str, settings: Any) -> None:
        """Change the old files for the new ones. In between the manifest says that the folder is not whole."""
        old = _listed(self.path)
        kept = {name for name, _ in self._data.items()}
        write_manifest(self.path, command, settings, self._data, done=False, stale=old - kept)
        for name in old | kept:  # first, for those who ask no manifest: what is missing shows, a mixture does not
            (self.path / name).unlink(missing_ok=True)
        for name in self._data:
            os.replace(self._staging / name, self.path / name)
        write_manifest(self.path, command, settings, self._data)


@contextmanager
def owned_folder(
    path: str | Path, command: str, settings: Any = None, reads: Sequence[str] = ()
) -> Iterator[OwnedFolder]:
    """Write the files of a folder anew: those that the same command wrote before go, those of others stay.

    Arguments:
        command: who writes.
        settings: what it was told, for the manifest.
        reads: files that it reads, none of which may be one that it replaces.

    Raises:
        UserError: the folder belongs to another command, is read, or is written by another process at the same time.
    """
    path = Path(path)
    check_owner(path, command, reads)
    new = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    with only_writer(path):
        check_owner(path, command, reads)  # another command may have come to an end since
        for left in path.glob(f".{_STAGING}*.tmp"):  # of a command that was killed
            shutil.rmtree(left, ignore_errors=True)
        for draft in path.glob(f".{MANIFEST}.*.tmp"):
            draft.unlink(missing_ok=True)
        folder = OwnedFolder(path)
        first = not (path / MANIFEST).exists()
        if first:  # who reads the folder meanwhile, or after a kill, must not take what is half done for the result
            write_manifest(path, command, settings, {}, done=False)
        settled = False
        _writing.add(path.resolve())
        try:
            yield folder
            folder._settle(command, settings)
            settled = True
        finally:
            _writing.discard(path.resolve())
            shutil.rmtree(folder._staging, ignore_errors=True)
            if first and not settled and not _listed(path):
                (path / MANIFEST).unlink(missing_ok=True)
            if new:
                with suppress(OSError):  # it is not empty: all went well
                    path.rmdir()


@contextmanager
def only_writer(path: str | Path, remedy: str = "Wait for it, or choose another --out.") -> Iterator[None]:
    """Keep others from writing the folder; the lock ends with the process, however that ends.

    Raises:
        UserError: another process holds it.
    """
    with ExitStack() as opened:
        descriptor = os.open(path, os.O_RDONLY)
        opened.callback(os.close, descriptor)
        held = try_lock(descriptor)
        if held is None:  # NFS locks no folders, and no files but those that are open for writing
            beside = os.open(Path(path) / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            opened.callback(os.close, beside)
            held = try_lock(beside)
        if held is None:
            _log.warning("The file system of '%s' has no locks: see that one command at a time writes there.", path)
        if held is False:
            raise UserError(f"Another process is writing to '{path}'.", remedy)
        yield


def locked(file: IO[Any] | int) -> bool:
    """Keep others from writing a file or folder for as long as it is open in this process; False where one does
    already. The system takes the lock back from a process that dies. Where there are no locks it is as if nobody wrote.
    """
    return try_lock(file) is not False


def try_lock(file: IO[Any] | int) -> bool | None:
    """As `locked`; None where the file system cannot lock what this is."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def check_owner(path: str | Path, command: str, reads: Sequence[str] = ()) -> None:
    """Refuse a folder that a command must not write to.

    Arguments:
        reads: files that the command reads.

    Raises:
        UserError: another command has written it, it holds a file that is read, or it is a file.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"'{path}' is a file where a folder is needed.", "Choose another folder with --out.")
    owner = _manifest(path).get("command", command)
    if owner != command:
        raise UserError(f"'{path}' holds what `{owner}` wrote.", "Choose another folder with --out, or remove it.")
    inside = [each for each in reads if "://" not in str(each) and Path(each).resolve().parent == path.resolve()]
    if inside:
        raise UserError(f"'{path}' holds what is read, such as '{inside[0]}'.", "Choose another folder with --out.")


def write_manifest(
    path: str | Path,
    command: str,
    settings: Any,
    files: dict[str, bool],
    *,
    done: bool = True,
    stale: Iterable[str] = (),
) -> None:
    """Say what a folder holds.

    Arguments:
        files: names, and whether they hold records.
        done: whether all of them are there.
        stale: files of an earlier content that are still to go.
    """
    path = Path(path)
    content = {
        "command": command,
        "settings": sha256_json(settings),
        "done": done,
        "data": [name for name, data in files.items() if data],
        "other": [name for name, data in files.items() if not data],
    }
    write_json(path / MANIFEST, content if done else content | {"stale": sorted(stale)})


def add_notes(path: str | Path, names: Iterable[str]) -> None:
    """Count files that were written beside a result, such as a look into it, among its notes: they go with it when it
    is replaced. Of a folder that nobody owns nothing is said.

    Raises:
        UserError: another process is writing the folder.
    """
    path = Path(path)
    if not (path / MANIFEST).is_file():
        return
    with only_writer(path, "Run the same command again when it is done."):
        manifest = _manifest(path)
        write_json(path / MANIFEST, manifest | {"other": list(dict.fromkeys([*manifest.get("other", ()), *names]))})


def only_owned(files: Sequence[str], root: str | Path) -> list[str]:
    """Those of some files that are data, where a manifest says what is.

    Arguments:
        root: no folder above it is looked into for a manifest.

    Raises:
        UserError: a folder's writing was cut off, or is under way; the change of its files alone is waited for.
    """
    root = Path(root)
    known: dict[Path, set[Path] | None] = {}

    def data_of(folder: Path) -> set[Path] | None:
        """What may be read of a folder; None for everything."""
        if folder not in known:
            if (folder / MANIFEST).is_file():
                ours = folder.resolve() in _writing
                manifest = _manifest(folder) if ours else _settled(folder)
                whole = manifest.get("done")
                if not whole and not ours:
                    raise UserError(
                        f"The writing of '{folder}' was cut off, or is under way.",
                        f"Run `{manifest.get('command')}` again, or wait for it.",
                    )
                known[folder] = {folder / name for name in manifest.get("data", ())} if whole else set()
            else:
                known[folder] = None if folder in (root, folder.parent) else data_of(folder.parent)
        return known[folder]

    kept = []
    for name in files:
        allowed = data_of(Path(name).parent)
        if allowed is None or Path(name) in allowed:
            kept.append(name)
    return kept


def read_whole(folder: str | Path, read: Callable[[], T]) -> T:
    """What reading several files of a folder gives. They are read again where a command has changed them for others
    meanwhile, so that none is of another result than the rest.

    Arguments:
        read: reads them, and refuses a folder whose writing was cut off (`only_owned`).

    Raises:
        UserError: what `read` raises, or the folder changed each time.
    """
    manifest = Path(folder) / MANIFEST
    for _ in range(_TRIES):
        with ExitStack() as opened:
            before: IO[Any] | None = None
            with suppress(OSError):  # nobody owns the folder
                before = opened.enter_context(open(manifest, "rb"))
            try:
                found = read()
            except UserError:  # a file may be missing for the moment of the change
                if _is_still(manifest, before):
                    raise
                continue
            if _is_still(manifest, before):
                return found
    raise UserError(f"'{folder}' was written anew each time it was read.", "Try again once nothing writes it.")


def _is_still(manifest: Path, opened: IO[Any] | None) -> bool:
    """Whether the manifest is the file that was opened: each change of the folder begins with a new one, and as long as
    the old one is open, no other file has its number.
    """
    try:
        now = os.stat(manifest)
    except OSError:
        return opened is None
    return opened is not None and os.path.samestat(now, os.fstat(opened.fileno()))


def _manifest(path: Path) -> dict[str, Any]:
    return read_mapping(path / MANIFEST) if (path / MANIFEST).is_file() else {}


def _settled(path: Path) -> dict[str, Any]:
    """The manifest of a folder once its files are changed, where that is under way; as it is where it does not end, as
    after a kill.
    """
    for _ in range(_TRIES):
        manifest = _manifest(path)
        if manifest.get("done") or not _named(manifest):  # whole, or the first content, which may take hours
            break
        time.sleep(_PAUSE)
    return manifest


def _listed(path: Path) -> set[str]:
    """Files that an earlier content of a folder has, or had when it was cut off; plain names only."""
    return _named(_manifest(path))


def _named(manifest: dict[str, Any]) -> set[str]:
    names = [*manifest.get("data", ()), *manifest.get("other", ()), *manifest.get("stale", ())]
    return {name for name in names if isinstance(name, str) and Path(name).name == name and name not in (".", "..")}
