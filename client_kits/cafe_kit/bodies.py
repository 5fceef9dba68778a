"""The body of a contribution or a release: named arrays as canonical safetensors bytes, and the gate they enter by.

Knows: names, shapes and dtypes that were agreed beforehand. Does not know what the numbers mean or whether they are
clipped. Nothing is computed with an array before its bytes have passed every check, in the order of cost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from cafe_kit.errors import CafeError

MAX_HEADER_BYTES = 256 * 1024
_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32"}
_AGAIN = "The body was not used and counts as zero; the site's log says what it sent. Kit and server must be of the same version."

Schema = Mapping[str, tuple[tuple[int, ...], str]]  # name -> (shape, numpy's name of the dtype)


def body_to_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Safetensors without metadata; equal arrays give equal bytes."""
    return safetensors.numpy.save({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)})


def body_from_bytes(data: bytes, schema: Schema) -> dict[str, NDArray[Any]]:
    """The arrays in ``data`` if they are exactly what ``schema`` says, and finite.

    Raises:
        CafeError: CAFE-451 size, 452 format, 453 names, 454 dtype, 455 shape, 456 not finite. Names at most three
            tensors and never a value.
    """
    header = _header(data)
    _check_header(header, schema)
    payload = sum(prod(shape) * np.dtype(dtype).itemsize for shape, dtype in schema.values())
    if len(data) != 8 + int.from_bytes(data[:8], "little") + payload:
        raise CafeError("CAFE-451", f"A body has {len(data)} bytes, which is not what was agreed.", _AGAIN)
    try:
        arrays = safetensors.numpy.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise CafeError("CAFE-452", "A body is not a well-formed safetensors file.", _AGAIN) from None
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CafeError("CAFE-456", f"A body holds NaN or infinite numbers in '{name}'.", _AGAIN)
    return arrays


def _header(data: bytes) -> dict[str, Any]:
    """The JSON header, before the library sees a byte: bounded, without metadata, without a name given twice."""
    if len(data) < 8:
        raise CafeError("CAFE-451", f"A body has {len(data)} bytes, which is too few.", _AGAIN)
    size = int.from_bytes(data[:8], "little")
    if size > min(MAX_HEADER_BYTES, len(data) - 8):
        raise CafeError("CAFE-451", "A body is cut, or its header is larger than allowed.", _AGAIN)
    try:
        header = json.loads(data[8 : 8 + size], object_pairs_hook=_no_name_twice)
    except (ValueError, RecursionError):
        raise CafeError("CAFE-452", "A body's header is not plain JSON with every name once.", _AGAIN) from None
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
        raise CafeError("CAFE-452", "A body's header is not a list of tensors.", _AGAIN)
    return header


def _check_header(header: dict[str, Any], schema: Schema) -> None:
    if header.keys() != schema.keys():
        odd = sorted(header.keys() ^ schema.keys())
        raise CafeError("CAFE-453", f"A body does not hold the agreed tensors; {len(odd)} differ, first: {_names(odd)}.", _AGAIN)
    wrong = sorted(name for name, (_, dtype) in schema.items() if header[name].get("dtype") != _DTYPES[dtype])
    if wrong:
        raise CafeError("CAFE-454", f"A body holds tensors of another number format than agreed: {_names(wrong)}.", _AGAIN)
    wrong = sorted(name for name, (shape, _) in schema.items() if header[name].get("shape") != list(shape))
    if wrong:
        raise CafeError("CAFE-455", f"A body holds tensors of another shape than agreed: {_names(wrong)}.", _AGAIN)


def _names(names: list[str]) -> str:
    """At most three names, short and printable: they come from outside."""
    return ", ".join(repr(name[:80])[1:-1] for name in names[:3])


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name stands twice")
    return dict(pairs)
