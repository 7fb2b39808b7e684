"""The columns of MDS: values to bytes and back."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from lmlab.errors import LmlabError, UserError, missing_extra
from lmlab.files import json_value

SCALARS = {
    "int": "<i8",
    "int8": "<i1",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
    "uint8": "<u1",
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
}
_ARRAY_CODES = {
    8: "u1",
    9: "i1",
    16: "u2",
    17: "i2",
    18: "f2",
    32: "u4",
    33: "i4",
    34: "f4",
    64: "u8",
    65: "i8",
    66: "f8",
}
_SHAPE_TYPES = ("u1", "u2", "u4", "u8")
DAMAGE = (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError, RecursionError, struct.error)


class MDSError(LmlabError):
    """A shard that is damaged, or holds what lmlab does not read."""


def decoder(encoding: Any, path: str) -> Callable[[bytes], Any]:
    """What makes values of a column of this encoding from bytes.

    Raises:
        UserError: lmlab does not read such columns; `path` is named.
    """
    if not isinstance(encoding, str):
        raise UserError(f"'{path}' has a column whose type is no text ({encoding!r}).")
    if encoding in SCALARS:
        return lambda data: np.frombuffer(data, SCALARS[encoding])[0].item()
    match encoding.split(":"):
        case ["str"]:
            return lambda data: data.decode("utf-8")
        case ["bytes"]:
            return lambda data: data
        case ["json"]:
            return json_value
        case ["ndarray"]:
            return lambda data: _array(data[1:], _ARRAY_CODES[data[0]])
        case ["ndarray", dtype] if _is_dtype(dtype):
            return lambda data: _array(data, dtype)
        case ["ndarray", dtype, shape] if _is_dtype(dtype):
            sizes = tuple(int(size) for size in shape.split(","))
            return lambda data: np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(sizes)
        case _:
            raise UserError(f"'{path}' has a column of the type '{encoding}', which lmlab does not read.")


def encoder(encoding: str) -> Callable[[Any], bytes]:
    """What makes bytes of the values of a column of this encoding.

    Raises:
        UserError: lmlab does not write such columns.
    """
    if encoding in SCALARS:
        return lambda value: np.array(value, SCALARS[encoding]).tobytes()
    match encoding.split(":"):
        case ["str"]:
            return lambda value: str(value).encode("utf-8")
        case ["bytes"]:
            return bytes
        case ["json"]:
            return lambda value: json.dumps(value).encode()
        case ["ndarray", dtype] if _is_dtype(dtype):
            return lambda value: _array_bytes(np.asarray(value, np.dtype(dtype).newbyteorder("<")))
        case _:
            raise UserError(
                f"lmlab does not write MDS columns of the type '{encoding}'.",
                "Use str, bytes, json, a number, or ndarray:TYPE.",
            )


def _is_dtype(name: str) -> bool:
    return name in SCALARS and name != "int"


def _array(data: bytes, dtype: str) -> Any:
    """An array after its header: (dimensions << 2 | code of the type of its sizes), then the sizes."""
    dimensions, code = data[0] >> 2, data[0] & 3
    sizes = np.frombuffer(data, np.dtype(_SHAPE_TYPES[code]).newbyteorder("<"), dimensions, 1)
    values = np.frombuffer(data, np.dtype(dtype).newbyteorder("<"), offset=1 + sizes.nbytes)
    return values.reshape(sizes)


def _array_bytes(array: Any) -> bytes:
    if array.size == 0:
        raise UserError("MDS cannot hold an array without elements.")
    code = next(code for code in range(4) if max(array.shape) < 256 ** (2**code))
    return (
        bytes([array.ndim << 2 | code])
        + np.array(array.shape, np.dtype(_SHAPE_TYPES[code]).newbyteorder("<")).tobytes()
        + array.tobytes()
    )


def short_reason(error: Exception) -> str:
    """The first line of an error, for the end of a sentence."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def zstandard_library() -> Any:
    """The optional library, or a sentence that names the extra."""
    try:
        import zstandard
    except ImportError:
        raise missing_extra("zstandard", "Reading a compressed MDS shard") from None
    return zstandard
