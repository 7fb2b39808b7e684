"""Weights in large pages of memory (Linux).

A step of decoding reads every weight once, and waits for nothing but memory. In pages of 4 KiB a processor looks up
where the next one lies some 70,000 times in a step of a model of 135M parameters, and reads ahead to the end of a page
only; in pages of 2 MiB it need not.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable

import torch
from torch import Tensor

_ALIGNED = 64  # bytes, a line of the cache
_FEWEST_BYTES = 1 << 24  # what is smaller stays in the cache
_LARGE = 1 << 21  # 2 MiB, the size of a large page on x86-64, and on arm64 with pages of 4 KiB


def into_large_pages(tensors: Iterable[Tensor]) -> bool:
    """Move the memory of tensors on a CPU, one after the other in this order; return whether it was.

    What shares memory goes on sharing it. Tensors in shared memory stay where they are, and all do where the system
    grants no large pages, or where it is about few bytes.
    """
    by_storage: dict[int, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.device.type == "cpu" and tensor.untyped_storage().nbytes() and not tensor.is_shared():
            by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
    needed = sum(_padded(views[0].untyped_storage().nbytes()) for views in by_storage.values())
    pages = _large_pages(needed) if needed >= _FEWEST_BYTES else None
    if pages is None:
        return False
    first = torch.frombuffer(pages, dtype=torch.uint8, count=1)
    place = -first.data_ptr() % _LARGE
    # outside of inference mode, so that weights can be trained as before
    with torch.inference_mode(False), torch.no_grad():
        for views in by_storage.values():
            old = views[0].untyped_storage()
            # a storage of its own: what copies one tensor copies no others
            new = torch.frombuffer(pages, dtype=torch.uint8, count=old.nbytes(), offset=place)
            new.copy_(torch.empty(0, dtype=torch.uint8).set_(old))
            for view in views:
                flat = new.view(view.dtype)
                view.data = flat.as_strided(view.shape, view.stride(), view.storage_offset())
            place += _padded(old.nbytes())
    return True


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNED) * _ALIGNED


def _large_pages(num_bytes: int) -> mmap.mmap | None:
    """Memory of this process alone, with room to begin at a large page; None where there is none of that kind."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        pages = mmap.mmap(-1, num_bytes + _LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        return None
    return pages
