"""How well a general-purpose compressor predicts a text: the baseline that needs no training.

Sizes are those of a complete .xz file as `xz -9e` writes it, container included (stream header and footer, block
header, index and a CRC64 check: some 60 bytes, rounded up to a multiple of 4). On a short text that overhead is
most of the figure: compress many texts as one, or use `xz_bits_after`, in which it cancels out. (From version 5.6
the `xz` command compresses with several threads unless told `-T1`: that adds a few bytes, and splits texts of more
than 192 MiB into blocks, which are not split here.)

The compressor releases the global interpreter lock, so threads run these functions in parallel. Each call may need up
to about 11 times its dictionary in memory (700 MB at the default of 64 MiB), though short texts touch little of it.
"""

from __future__ import annotations

import lzma

PRESET = 9 | lzma.PRESET_EXTREME  # `xz -9e`: the strongest there is, as a baseline should be
PRESET_DICTIONARY = 64 << 20  # bytes: that of `xz -9e`
MAX_DICTIONARY = 3 << 29  # bytes: 1.5 GiB, the most that the LZMA encoder takes


def xz_bits(data: bytes) -> int:
    """The size of `data` compressed by `xz -9e`, in bits, container included; 256 for no data."""
    return _compressed_bits(data, PRESET_DICTIONARY)


def xz_bits_after(prefix: bytes, data: bytes) -> int:
    """What `data` adds, in bits, to an `xz -9e` stream that already holds `prefix`.

    A language model has read its training text before it is scored; this lets the compressor read it too, as in
    Benedetto, Caglioti & Loreto (2002), "Language Trees and Zipping", Physical Review Letters 88. It is
    `xz_bits(prefix + data) - xz_bits(prefix)`, but where the two together exceed the preset's dictionary of 64 MiB,
    the dictionary grows to reach back to the first byte of the prefix.

    The container's overhead cancels out. File sizes are multiples of 4 bytes, so the result is a multiple of 32 and
    means little for a few bytes of data.

    Raises:
        ValueError: prefix and data together exceed 1.5 GiB, the compressor's longest memory.
    """
    total = len(prefix) + len(data)
    if total > MAX_DICTIONARY:
        raise ValueError(
            f"prefix and data are {total:,} bytes together, but xz remembers at most {MAX_DICTIONARY:,} (1.5 GiB): pass"
            " a shorter prefix"
        )
    dictionary = max(PRESET_DICTIONARY, total)
    return _compressed_bits(prefix + data, dictionary) - _compressed_bits(prefix, dictionary)


def _compressed_bits(data: bytes, dictionary: int) -> int:
    """The size in bits of an .xz file that holds `data`; `dictionary` is how far back it may refer, in bytes."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": PRESET, "dict_size": dictionary}]
    return 8 * len(lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, filters=filters))
