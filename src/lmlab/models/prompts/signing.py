"""Who wrote a file: a mark that only this user of this machine can make.

Vectors are inputs of a model that no filter of texts sees, so that what others wrote is read only when a user says that
he trusts it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping

import torch
from torch import Tensor

from lmlab.files import cache_directory, draft_of

UNTRUSTED = "Vectors can tell a model anything, unseen. If you trust them: --trust"
"""The remedy where what others wrote is asked for."""

_KEY = "signing-key"


def digest_of(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """Of all that a file says, but for who wrote it."""
    told = sorted((name, value) for name, value in about.items() if name != "mark")
    digest = hashlib.sha256(repr(told).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def mark_of(digests: str) -> str:
    """The mark of what was written here."""
    return hmac.new(_key(), digests.encode(), hashlib.sha256).hexdigest()


def is_own(digests: str, mark: object) -> bool:
    """Whether this user of this machine made the mark."""
    return isinstance(mark, str) and hmac.compare_digest(mark, mark_of(digests))


def _key() -> bytes:
    path = cache_directory() / _KEY
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = draft_of(path)
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
            os.link(draft, path)  # the first of several processes decides
        except FileExistsError:
            pass
        finally:
            draft.unlink(missing_ok=True)
    return path.read_bytes()
