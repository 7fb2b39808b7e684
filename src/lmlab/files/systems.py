"""The file systems of local paths and URLs, and a file's bytes as they are."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from lmlab.errors import UserError
from lmlab.redaction import HIDDEN

_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "az": "adlfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
}


def is_url(location: str | Path) -> bool:
    """Whether a location names a file system: `s3://bucket/key`, `memory://file`; a plain path does not."""
    return "://" in str(location)


def open_raw(location: str | Path) -> IO[bytes]:
    """Open a file for reading, as it is.

    Raises:
        OSError: it is not there or cannot be read.
    """
    if not is_url(location):
        return open(location, "rb")
    system, path = file_system(str(location))
    opened: IO[bytes] = system.open(path, "rb")
    return opened


def file_system(location: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        UserError: no such file system, or its package is not installed.
    """
    if f"{HIDDEN}@" in location or f"={HIDDEN}" in location:
        raise UserError(
            f"'{location}' was stored without its secrets.",
            "Run the recipe that has them, or let the environment hold them (AWS_ACCESS_KEY_ID and the like).",
        )
    import fsspec  # here, as help needs none and it takes 20 ms

    protocol = location.partition("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(location)
    except ImportError:
        package = _PACKAGES.get(protocol, protocol)
        raise UserError(
            f"Reading '{location}' needs the package '{package}'.", f"Install it with: pip install {package}"
        ) from None
    except ValueError as error:
        raise UserError(f"'{location}': {error}.", "Check what stands before '://'.") from None
    return system, path


def unreachable(location: str, error: Exception) -> UserError:
    lines = str(error).splitlines()
    reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return UserError(f"'{location}' cannot be reached ({reason}).", "Check the address and the credentials.")
