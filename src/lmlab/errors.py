"""Errors that speak to the user: what is wrong, where, and what to do.

The command line prints them without a traceback.
"""

from __future__ import annotations

import difflib
import errno
import functools
import inspect
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from lmlab.redaction import redact

EXIT_FAILURE = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


class LmlabError(Exception):
    """A failure with a message for the user: one clear sentence, and a remedy where there is one. Secrets of the
    locations that they name are hidden.
    """

    exit_code = EXIT_FAILURE

    def __init__(self, message: str, remedy: str | None = None) -> None:
        self.message = redact(message)
        self.remedy = None if remedy is None else redact(remedy)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}\n  {self.remedy}" if self.remedy else self.message


class UserError(LmlabError):
    """The user's mistake: a wrong key, a missing file, an impossible setting."""

    exit_code = EXIT_USER_ERROR


class Interrupted(LmlabError):
    """Stopped on request (Ctrl-C or SIGTERM) with everything saved."""

    exit_code = EXIT_INTERRUPTED


# Optional modules: the package that brings each, and the extras of lmlab that hold it, the most general one first.
EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "accelerate": ("accelerate", ("gguf",)),
    "bitsandbytes": ("bitsandbytes", ("quantize",)),
    "bm25s": ("bm25s", ("retrieval", "swe")),
    "datatrove": ("datatrove", ("clean",)),
    "datasets": ("datasets", ("swe",)),
    "datasketch": ("datasketch", ("data",)),
    "faiss": ("faiss-cpu", ("ann",)),
    "fasttext": ("fasttext-numpy2", ("fasttext",)),
    "gguf": ("gguf", ("gguf",)),
    "h11": ("uvicorn", ("serve",)),
    "hnswlib": ("hnswlib", ("ann",)),
    "httpx": ("httpx", ("judge", "quality", "swe")),
    "llguidance": ("llguidance", ("structured",)),
    "lm_eval": ("lm-eval", ("eval",)),
    "lz4": ("lz4", ("data",)),
    "onnxruntime": ("onnxruntime", ("nli",)),
    "pyarrow": ("pyarrow", ("data", "quality", "swe")),
    "ray": ("ray", ("ray",)),
    "regex": ("regex", ("clean",)),
    "rouge_score": ("rouge-score", ("eval",)),
    "s3fs": ("s3fs", ("s3",)),
    "sklearn": ("scikit-learn", ("quality", "retrieval")),
    "spacy": ("spacy", ("clean",)),
    "starlette": ("starlette", ("serve",)),
    "tenacity": ("tenacity", ("judge", "quality", "swe")),
    "tensorboard": ("tensorboard", ("track",)),
    "transformers": ("transformers", ("hf", "gguf", "retrieval")),
    "uvicorn": ("uvicorn", ("serve",)),
    "wandb": ("wandb", ("track",)),
    "zstandard": ("zstandard", ("data",)),
}

_DAMAGE = (ArithmeticError, AttributeError, EOFError, LookupError, RecursionError, RuntimeError, TypeError, ValueError)
_DAMAGE_OF_LIBRARIES = {"BadZipFile", "SafetensorError", "error", "LZMAError", "ZstdError", "ArrowException"}
F = TypeVar("F", bound=Callable[..., Any])


def reads(what: str) -> Callable[[F], F]:
    """Decorate a function that reads a file or directory of the user's, which may be damaged in any way.

    What a missing key, a wrong type or a damaged file makes fail in it is a `UserError` that names the first path among
    its arguments. Where a reader can say more, it raises errors of its own, which pass. `--debug` shows the cause.

    Arguments:
        what: the file ought to hold, such as "a circuit".
    """

    def decorate(read: F) -> F:
        if inspect.isgeneratorfunction(read):

            @functools.wraps(read)
            def iterated(*arguments: Any, **named: Any) -> Iterator[Any]:
                with _damage(what, [*arguments, *named.values()]):
                    yield from read(*arguments, **named)

            return cast(F, iterated)

        @functools.wraps(read)
        def called(*arguments: Any, **named: Any) -> Any:
            with _damage(what, [*arguments, *named.values()]):
                return read(*arguments, **named)

        return cast(F, called)

    return decorate


@contextmanager
def _damage(what: str, arguments: list[Any]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if type(error) is LmlabError:
            raise UserError(error.message, error.remedy) from error  # what is read is the user's
        of_library = type(error).__name__ in _DAMAGE_OF_LIBRARIES or (isinstance(error, OSError) and not error.errno)
        if isinstance(error, LmlabError | MemoryError | UnicodeEncodeError) or "OutOfMemory" in type(error).__name__:
            raise
        if not of_library and not isinstance(error, _DAMAGE):
            raise
        paths = [each for kind in (os.PathLike, str) for each in arguments if isinstance(each, kind)]
        path = paths[0] if paths else "it"
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        if isinstance(error, KeyError):
            reason = f"the key {error} is missing"
        raise UserError(f"'{path}' is not {what}, or is damaged ({reason:.300}).", "Write or copy it again.") from error


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Name what is under way, for the message of an error that nobody foresaw: "the stage 'model' (train)"."""
    try:
        yield
    except Exception as error:
        error.add_note(what)
        raise


def from_unforeseen(error: Exception, extras: Collection[str] = (), purpose: str = "This") -> LmlabError:
    """The sentence for an exception that no code of lmlab has turned into one: what happened, and what was being done.

    What the system refuses, memory that ran out, text that no encoding has and packages that are not installed are told
    as such; everything else is our fault.

    Arguments:
        extras: of lmlab, which what was called needs: of those that hold a missing package one of these is named.
        purpose: what was called.
    """
    if isinstance(error, LmlabError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("lmlab"):
        held = EXTRAS.get(error.name.partition(".")[0], ("", ()))[1]
        return missing_extra(error.name, purpose, next((each for each in extras if each in held), None))
    if isinstance(error, OSError) and error.errno is not None:
        return from_os_error(error)
    where = f" in {', '.join(dict.fromkeys(reversed(notes)))}" if (notes := getattr(error, "__notes__", None)) else ""
    if says_no_memory(error):
        return LmlabError(f"The memory does not suffice{where}.", "Lower batch sizes or lengths, or use fewer workers.")
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):
        return UserError(f"{str(error).replace('from', 'at')}: a link leads back to itself.", "Remove the link.")
    if isinstance(error, UnicodeDecodeError):
        return UserError(f"A file is read{where} that is not UTF-8 (byte {error.start:,}).", "Save it as UTF-8.")
    if isinstance(error, UnicodeEncodeError):
        return UserError(
            f"A name or text that is not UTF-8 is met{where}: {error.object[: error.end]!r:.200}.",
            "Rename or convert it.",
        )
    first = next(iter(str(error).splitlines()), "")
    return LmlabError(
        f"lmlab failed{where}: {type(error).__name__}{': ' if first else ''}{first:.300}",
        "This is a fault of lmlab's or of a library. Run it again with --debug for the traceback, and report it.",
    )


# PyTorch's CPU allocator raises a plain RuntimeError; these are its words on Linux, macOS and Windows
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "alloc_cpu.cpp", "Cannot allocate memory")


def says_no_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the machine or of a GPU, was refused."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(text in str(error) for text in _NO_MEMORY)


_SHOWN = 40  # names in a sentence: more are no help
_LONGEST_NAME = 80  # characters of a name in a list: ids of documents may be whole pages


def did_you_mean(word: object, known: Iterable[object]) -> str:
    """Return " Did you mean 'x'?" for the nearest known word, or the list of known words when nothing is near."""
    word, candidates = str(word), sorted(map(str, known))
    # difflib's own: a slip or two, not another word
    nearest = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    if nearest:
        return f"Did you mean '{nearest[0]}'?"
    if not candidates:
        return ""
    more = f" and {len(candidates) - _SHOWN:,} more" if len(candidates) > _SHOWN else ""
    shown = [name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..." for name in candidates[:_SHOWN]]
    return f"Known: {', '.join(shown)}{more}."


def missing_extra(module: str, purpose: str, extra: str | None = None) -> UserError:
    """The error for an optional dependency that is not installed.

    Arguments:
        module: what could not be imported; of `EXTRAS`, or a module that one of those needs.
        purpose: what needs it, the subject of the sentence.
        extra: of lmlab, that brings it, by default the first one in `EXTRAS`.
    """
    package, extras = EXTRAS.get(module.partition(".")[0], (module.partition(".")[0], ()))
    if extra is None and extras:
        extra = extras[0]
    return UserError(
        f"{purpose} needs the package '{package}', which is not installed.",
        f"Run: pip install {package if extra is None else repr(f'lmlab[{extra}]')}",
    )


def from_os_error(error: OSError) -> LmlabError:
    """Translate a file-system error to the sentence that a user needs."""
    place = f"'{error.filename}'" if error.filename else "a file"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return LmlabError(
                f"The disk is full while writing {place}.",
                "Free some space and run the same command again: it goes on from what was kept.",
            )
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return UserError(
                f"No permission to write or read {place}.",
                "Choose another directory with --out, or change its permissions.",
            )
        case errno.ENOENT:
            return UserError(f"No such file or directory: {place}.")
        case errno.ENOTDIR | errno.EEXIST:
            return UserError(f"{place} is a file where a directory is needed.", "Choose another directory with --out.")
        case errno.EISDIR:
            return UserError(f"{place} is a directory where a file is needed.")
        case errno.ENAMETOOLONG | errno.ELOOP | errno.EINVAL:
            return UserError(f"{place:.300} is no usable path: {error.strerror}.")
        case _:
            return LmlabError(f"{error.strerror or error} ({place}).")
